"""Adapters (PEFT's LoRA) of policies: loading them on their base, and recording beside them which base that is.

An adapter's folder holds PEFT's `adapter_config.json` and `adapter_model.safetensors`, the policy's `config.json`, the
processor's files, and `base.json`: the path to the base from here, and a fingerprint that tells it from others. The base is a
policy, or the backbone of a new policy, whose other modules the adapter holds in full.
"""

import copy
import json
import os
from pathlib import Path

import torch
from torch import nn

from ..cards.model_card import write_model_card
from ..hub import SHARED_HUB_KWARGS, hub_options, is_repository_name
from ..transformers_internals import set_has_adapter
from ..utils.extras import pip_install
from .adapted_modules import adapter_tensors, inject, uncovered_modules, weight_fingerprint
from .checkpoint import Checkpoint
from .weights import load_tensors

ADAPTER_CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_PREFIX = "base_model.model."  # PEFT's, in front of every name in the file


class AdapterCheckpoint(Checkpoint):
    """An adapter's folder, or the Hub repository of one."""

    is_adapter = True

    def _base_record(self) -> dict:
        return self.files.read_json(BASE) or {}  # none if PEFT itself wrote the adapter

    def settings(self) -> dict:
        """PEFT's `adapter_config.json`."""
        return self.files.read_json(ADAPTER_CONFIG)

    @property
    def dtype(self) -> torch.dtype:
        """Of the policy that was adapted, by the configuration beside the adapter."""
        return getattr(torch, str((self.files.read_json("config.json") or {}).get("dtype") or "float32"))

    def base(self, given: str | None = None) -> str:
        """Return the folder or repository of the base: `given`, else the recorded one."""
        base = given or self.settings().get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{self.name} does not say what it adapts; pass base_model= with that policy or backbone")
        root = self.files.find(ADAPTER_CONFIG).parent
        candidates = [Path(base), root / base]
        if given is None and (relative := self._base_record().get("relative_path")):
            candidates.append(root / relative)  # both may have been moved; the fingerprint is checked later
        for path in candidates:
            if path.is_dir():
                return str(path)
        if Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1:
            raise OSError(
                f"{self.name} is an adapter of {base}, and there is no such folder: pass base_model= with the place it was "
                "moved to. For a policy that needs no base, merge them with hf-vla merge"
            )
        return base

    def load(self, model_class, config=None, base_model: str | None = None, **kwargs):
        """Load the base with the adapter in it.

        Args:
            model_class: the policy's class.
            config: its configuration; by default the one in the folder, else the base's.
            base_model: where the base is now, if not where it was.
            kwargs: as for `PreTrainedModel.from_pretrained`, Hub options apart.

        Raises:
            ValueError: the adapter does not fit the base, or the base is another one than it was trained on.
            OSError: the base is gone, or files are missing or broken.
            ImportError: peft is not installed.
        """
        try:
            from peft import PeftConfig
        except ImportError as error:
            raise ImportError(f"{self.name} is an adapter, which needs peft: {pip_install('peft')}") from error
        base = self.base(base_model)
        if config is None and self.model_type is not None:
            config = model_class.config_class.from_pretrained(self)
        kwargs.pop("adapter_kwargs", None)
        # Of the options, those that hold for the base too.
        kwargs |= hub_options(self.files.hub, SHARED_HUB_KWARGS) | self.options
        if kwargs.get("dtype") in (None, "auto") and getattr(config, "dtype", None) is not None:
            kwargs["dtype"] = config.dtype  # that of the training, even if the base's own differs
        peft_config = PeftConfig.from_pretrained(self.files.find(ADAPTER_CONFIG).parent)
        if peft_config.revision is not None:
            kwargs["revision"] = peft_config.revision
        try:
            model, is_policy = model_class.from_policy_or_backbone(base, config=config, **kwargs)
        except ValueError as error:
            raise ValueError(f"{self.name} does not fit {base}, which it names as its base: {error}") from error
        except OSError as error:
            raise OSError(
                f"{self.name} is an adapter of {base}, which can't be loaded ({error}); pass base_model= with another place"
            ) from error
        model.base_fingerprint = self._base_record().get("fingerprint")
        self.check_base(model, base)
        peft_config.inference_mode = True
        inject(peft_config, model)
        set_has_adapter(model, True)  # so that transformers saves adapters only
        if not is_policy and (random := uncovered_modules(model)):
            raise ValueError(
                f"{self.name} does not hold {', '.join(random)}, and its base {base} is a backbone without them: the "
                "policy would be half random"
            )
        self.load_weights(model)
        model.name_or_path = self.name
        return model.eval()

    def load_weights(self, model: nn.Module):
        """Copy the adapter's tensors into a model with such an adapter.

        Raises:
            ValueError: tensors are missing, unexpected or of other shapes.
            OSError: the file is missing or corrupt.
        """
        from peft import PeftModel, set_peft_model_state_dict

        from .strict_loading import raise_if_incomplete

        file = self.files.find(WEIGHTS)
        if file is None:
            raise OSError(f"{self.name} holds no {WEIGHTS}; the checkpoint is incomplete")
        tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_tensors(file).items()}
        needed = {name.removeprefix(_PREFIX): tensor for name, tensor in adapter_tensors(model).items()}
        shared = tensors.keys() & needed.keys()
        info = {
            "missing_keys": needed.keys() - shared,
            "unexpected_keys": tensors.keys() - shared,
            "mismatched_keys": {
                (n, tensors[n].shape, needed[n].shape) for n in shared if tensors[n].shape != needed[n].shape
            },
        }
        raise_if_incomplete(f"the adapter {self.name}", info)
        prefix = _PREFIX if isinstance(model, PeftModel) else ""
        return set_peft_model_state_dict(model, {prefix + name: tensor for name, tensor in tensors.items()})

    def check_base(self, model: nn.Module, base: str) -> None:
        """Raise a ValueError if `model`, without an adapter, is not the base that the adapter was trained on."""
        recorded = self._base_record().get("fingerprint") or {}
        now = weight_fingerprint(model, recorded)
        differ = [
            name
            for name, values in now.items()
            if not torch.allclose(values, torch.tensor(recorded[name]), 1e-2, 1e-4)
        ]
        if differ:
            raise ValueError(
                f"{base} is not the base that {self.name} was trained on, though it has its shapes: {len(differ)} of "
                f"{len(now)} weights compared differ, for example {differ[0]}. Was it trained again? Pass base_model= with "
                "the old one, or adapt the new one again"
            )


def describe_base(
    folder, model: nn.Module, base_fingerprint: dict[str, list[float]] | None, final_folder=None
) -> None:
    """Write beside PEFT's files the policy's configuration, and how its base is found and recognised.

    `final_folder` is where `folder` will be moved to, if it is a temporary one.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of this run: the adapter's base may be loaded in full precision
    config.save_pretrained(folder)
    base = model.peft_config["default"].base_model_name_or_path
    relative = os.path.relpath(base, final_folder or folder) if base and Path(base).is_dir() else None
    record = {"relative_path": relative, "fingerprint": base_fingerprint}
    (Path(folder) / BASE).write_text(json.dumps(record, indent=1) + "\n")
    repository = base if base and is_repository_name(base) else None
    write_model_card(folder, metadata={"base_model": repository, "base_model_relation": "adapter", "tags": ["lora"]})


__all__ = ["ADAPTER_CONFIG", "AdapterCheckpoint", "describe_base"]
