"""The one place where a checkpoint's format is recognised: this package's, StarVLA's native one, or an adapter."""

import os
from pathlib import Path

from ..hub import HUB_KWARGS, hub_options
from .adapters import ADAPTER_CONFIG, AdapterCheckpoint
from .checkpoint import Checkpoint, Files
from .starvla import CONFIG_FILES, NATIVE_KWARGS, StarVLACheckpoint

#: A policy's weights, whatever else a folder holds
WHOLE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def find_checkpoint(name_or_path, **options) -> Checkpoint | None:
    """Return the checkpoint in a folder or Hub repository, or None if there is none; see `open_checkpoint`."""
    if isinstance(name_or_path, Checkpoint):
        return name_or_path
    native = {name: value for name, value in options.items() if name not in HUB_KWARGS}
    files = Files(name_or_path, **hub_options(options))
    if not files.may_exist:
        return None
    configured = files.find("config.json")  # first: once it is known which commit it is of, the Hub is asked less
    # A whole policy with an adapter beside it is transformers' own matter.
    whole = files.folder is not None and any(files.find(name) for name in WHOLE_WEIGHTS)
    if not whole and files.find(ADAPTER_CONFIG):
        return AdapterCheckpoint(files, **native)
    if configured or files.find("processor_config.json"):
        return Checkpoint(files, **native)
    return StarVLACheckpoint.find(files, **native)


def open_checkpoint(name_or_path: str | os.PathLike | Checkpoint, **options) -> Checkpoint:
    """Open a checkpoint; `from_pretrained` of configurations, models and processors takes the result in place of the name.

    ```python
    >>> from hf_vla.checkpoints import open_checkpoint

    >>> checkpoint = open_checkpoint("StarVLA/Qwen3VL-PI_v3-Bridge-RT-1")  # doctest: +SKIP
    >>> model = QwenPIV3ForActionPrediction.from_pretrained(checkpoint)  # doctest: +SKIP

    ```

    Args:
        name_or_path: a folder or Hub repository; a checkpoint that is open already is returned as it is.
        options: Hub options (`revision`, `token`, …), and for native checkpoints `base_vlm`, the folder or repository of the
            backbone's configuration and processor; `checkpoint`, which file of weights to load; `fast_tokenizer`, the folder
            or repository of the FAST tokenizer.

    Raises:
        OSError: no such folder; one that holds no policy; a repository that the Hub doesn't know, or that can't be reached
            and is not cached.
        ValueError: options for native checkpoints were given for one that is not native.
    """
    checkpoint = find_checkpoint(name_or_path, **options)
    if checkpoint is None:
        raise _not_found(name_or_path)
    given = [name for name in NATIVE_KWARGS if name in checkpoint.options]
    if given and not (checkpoint.is_native or checkpoint.is_adapter):
        raise ValueError(
            f"{checkpoint.name} is not a native StarVLA checkpoint (it has its own config.json, or none of "
            f"{' and '.join(CONFIG_FILES)}); {', '.join(given)} can't be used with it"
        )
    return checkpoint


def open_with(name_or_path, kwargs: dict) -> tuple[Checkpoint, dict]:
    """Open a checkpoint by the Hub and native options among `kwargs`; return it and the other arguments."""
    names = {*HUB_KWARGS, *NATIVE_KWARGS}
    options = {name: value for name, value in kwargs.items() if name in names}
    return open_checkpoint(name_or_path, **options), {n: value for n, value in kwargs.items() if n not in names}


def _not_found(name_or_path) -> OSError:
    """Return an error that says more than transformers' "could not connect"."""
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return OSError(
            f"{name} holds no config.json, and no {' or '.join(CONFIG_FILES)} of StarVLA's: it is not a policy's folder"
        )
    if path.exists():
        return NotADirectoryError(f"{name} is a file; give the folder of a policy, or a Hub repository")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # not a repository's name
        return FileNotFoundError(f"no such folder: {name}" + (" (~ is not expanded)" if name[0] == "~" else ""))
    return OSError(
        f"no such folder: {name}, and no Hub repository of that name can be had: the Hub doesn't know it, or can't be "
        f"reached and it is not cached. Check the name; for use offline, download it first: hf download {name}"
    )


__all__ = ["find_checkpoint", "open_checkpoint", "open_with"]
