"""One error that names the file, for policies whose configuration, tokenizer or processor files make no sense.

Libraries read `null`, lists, texts for numbers and deeply nested JSON without a check, and fail somewhere else, in some way. What
fails while a policy is loaded is therefore diagnosed: the files are read and used one by one.
"""

import contextlib
import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

from ..registry import class_of, frameworks
from .checkpoint import Checkpoint
from .zero3 import not_partitioned

CONFIG, PROCESSOR = "config.json", "processor_config.json"
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json")
_OTHERS = ("adapter_config.json", "generation_config.json", "special_tokens_map.json", "preprocessor_config.json")

_diagnosing: ContextVar[bool] = ContextVar("_diagnosing", default=False)


class UnusableFile(OSError):
    """A file of a checkpoint makes no sense; the message names it."""


@contextlib.contextmanager
def unusable_files_named(name_or_path: Any, **options) -> Iterator[None]:
    """Name the file if loading a policy inside fails because of one.

    Args:
        name_or_path, options: what is loaded, as for `find_checkpoint`.

    Raises:
        UnusableFile: a file of the checkpoint makes no sense.
    """
    try:
        yield
    except Exception as error:  # libraries raise anything
        if isinstance(error, UnusableFile) or _diagnosing.get():
            raise
        if isinstance(error, OSError | ValueError) and _names_a_file(str(error)):
            raise
        from .opening import find_checkpoint

        token = _diagnosing.set(True)
        try:
            checkpoint = find_checkpoint(name_or_path, **options)
            fault = None if checkpoint is None or checkpoint.is_native else find_fault(checkpoint)
        except UnusableFile as own:
            fault = str(own)
        except (OSError, ValueError):  # there is nothing to be diagnosed
            fault = None
        finally:
            _diagnosing.reset(token)
        if fault is None:
            raise
        raise UnusableFile(fault) from error


def find_fault(checkpoint: Checkpoint) -> str | None:
    """Return which file of a policy in this package's format makes no sense, and why, or None."""
    for name in (CONFIG, PROCESSOR, *_TOKENIZER, *_OTHERS):
        try:
            checkpoint.files.read_json(name)
        except OSError as error:
            return str(error)
    if checkpoint.model_type not in frameworks():
        return None
    try:
        config = class_of(checkpoint.model_type, "config").from_dict(checkpoint.files.read_json(CONFIG))
        if not checkpoint.is_adapter:
            with not_partitioned(), torch.device("meta"):
                class_of(checkpoint.model_type, "model")(config)
    except Exception as error:
        return f"{checkpoint.files.find(CONFIG)} makes no sense: {_said(error)}"
    return _fault_of_processor(checkpoint)


def _fault_of_processor(checkpoint: Checkpoint) -> str | None:
    file = checkpoint.files.find(PROCESSOR)
    if file is None:
        return None
    from transformers import AutoTokenizer

    own = class_of(checkpoint.model_type, "processor")
    if checkpoint.processor_class != own.__name__:
        return (
            f"{file} makes no sense: processor_class is {checkpoint.processor_class!r:.80} instead of {own.__name__!r}"
        )
    try:
        AutoTokenizer.from_pretrained(file.parent)
    except Exception as error:
        return f"{file.with_name('tokenizer.json')}, or the files beside it, make no tokenizer: {_said(error)}"
    try:
        super(own, own).from_pretrained(file.parent)
    except Exception as error:
        return f"{file} makes no sense: {_said(error)}"
    return None


def check_config(content: dict[str, Any]) -> None:
    """Check what transformers does not check in a policy's saved configuration.

    Raises:
        ValueError: it does not say what its backbone is (transformers would take a default), or its dtype is none.
    """
    dtype = content.get("dtype")
    if not (
        dtype is None or isinstance(dtype, torch.dtype) or isinstance(getattr(torch, str(dtype), None), torch.dtype)
    ):
        raise ValueError(f"dtype is {dtype!r:.60}; it must be the name of a torch dtype, such as 'bfloat16'")
    if "vlm_config" not in content:
        return
    vlm = content["vlm_config"]
    model_type = vlm.get("model_type") if isinstance(vlm, dict) else getattr(vlm, "model_type", None)
    if not isinstance(model_type, str):
        raise ValueError(
            f"vlm_config is {json.dumps(vlm, default=str):.60}; it must be the backbone's configuration, an object with a model_type"
        )
    if not isinstance(vlm, dict):
        return
    for part in ("text_config", "vision_config"):
        if part in vlm and not vlm[part]:
            raise ValueError(
                f"vlm_config.{part} is {vlm[part]!r}; it must be the configuration of that part of the backbone"
            )
        if isinstance(vlm.get(part), dict) and not _known_fields(model_type, part, vlm[part]):
            raise ValueError(
                f"vlm_config.{part} has only {', '.join(vlm[part])}, none of which is a field of {model_type!r}: all would be defaults"
            )
    text = vlm.get("text_config")
    if isinstance(text, dict) and text.get("hidden_size") == 0:
        raise ValueError("vlm_config.text_config.hidden_size is 0; it must be at least 1")


def _known_fields(model_type: str, part: str, given: dict[str, Any]) -> bool:
    """Whether a part of a backbone's configuration has any field that says how large it is, if that can be told."""
    from transformers import CONFIG_MAPPING

    whole = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None
    known = getattr((getattr(whole, "sub_configs", None) or {}).get(part), "__dataclass_fields__", None)
    return known is None or bool((known.keys() - {"model_type", "dtype"}) & given.keys())


def _names_a_file(text: str) -> bool:
    return any(name in text for name in (CONFIG, PROCESSOR, *_TOKENIZER, *_OTHERS, ".safetensors"))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text[:300]}"


__all__ = ["UnusableFile", "check_config", "find_fault", "unusable_files_named"]
