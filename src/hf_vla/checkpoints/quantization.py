"""Backbones in 4 or 8 bits: the backbone only, never the modules that the actions come out of."""

import copy
import importlib.util
import logging

import torch
from torch import nn

from ..utils.extras import pip_install
from ..utils.suggestions import did_you_mean

logger = logging.getLogger(__name__)

#: What `quantization` can be, and what it stands for.
QUANTIZATIONS = {
    "int8": "8-bit integer weights, one scale per output channel (torchao)",
    "int4": "4-bit NF4 weights in blocks of 64 (bitsandbytes)",
    "fp8": "8-bit float weights, one scale per output channel, and activations too on GPUs that multiply them (torchao)",
}


def quantization_argument(kwargs: dict) -> dict:
    """Return arguments of `from_pretrained` in which `quantization`, if given, is the `quantization_config`.

    Raises:
        ValueError: an unknown name, or both are given.
    """
    kwargs = dict(kwargs)
    name = kwargs.pop("quantization", None)
    if name is None:
        return kwargs
    if kwargs.get("quantization_config") is not None:
        raise ValueError("quantization and quantization_config are both given; leave one of them out")
    _check_name("quantization", name)
    return kwargs | {"quantization_config": name}


def _check_name(argument: str, name) -> None:
    if name not in QUANTIZATIONS:
        hint = did_you_mean(str(name), QUANTIZATIONS, f"possible: {', '.join(QUANTIZATIONS)}")
        raise ValueError(f"{argument} is {name!r}{hint}")


def of_backbone_only(quantization_config, model_class: type, config, dtype=None, device_map=None):
    """Return a configuration of bitsandbytes or torchao that skips all modules outside the backbone, and its language-model head.

    Configurations of other libraries, and those that say themselves what to skip, are returned unchanged.

    Args:
        quantization_config: a name of `QUANTIZATIONS`, `BitsAndBytesConfig`, `TorchAoConfig`, or another library's.
        model_class, config: the policy's class and configuration.
        dtype, device_map: as in `from_pretrained`; they decide what a name stands for.

    Raises:
        ImportError: the library is not installed.
        ValueError: it supports no device of this machine, or the name is none of `QUANTIZATIONS`.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if isinstance(quantization_config, str):
        quantization_config = _named(quantization_config, _dtype(dtype, config), device_map)
    if isinstance(quantization_config, TorchAoConfig):
        if quantization_config.modules_to_not_convert is None:
            quantization_config = copy.deepcopy(quantization_config)
            quantization_config.modules_to_not_convert, _ = _outside_backbone(model_class, config)
        return quantization_config
    if not isinstance(quantization_config, BitsAndBytesConfig):
        return quantization_config
    check_bitsandbytes()
    if quantization_config.llm_int8_skip_modules is not None:
        return quantization_config
    skipped, model = _outside_backbone(model_class, config)
    if quantization_config.load_in_4bit and not torch.accelerator.is_available():
        # bitsandbytes 0.50 packs 4-bit weights for CPUs in blocks of 32 x 64, and fails on others.
        skipped += [
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.Linear) and (m.out_features % 32 or m.in_features % 64)
        ]
    quantization_config = copy.deepcopy(quantization_config)
    quantization_config.llm_int8_skip_modules = skipped
    return quantization_config


def _outside_backbone(model_class: type, config) -> tuple[list[str], nn.Module]:
    """The names of what is not to be quantised, and the model on the meta device."""
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    skipped = [name for name, _ in model.named_children() if name != "vlm"]
    head = model.get_output_embeddings()
    return skipped + [name for name, module in model.named_modules() if module is head], model


def _dtype(dtype, config) -> torch.dtype:
    """The dtype of the weights that are not quantised."""
    if dtype in (None, "auto"):
        dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    return dtype or torch.get_default_dtype()


def _named(name: str, dtype: torch.dtype, device_map):
    """The library's configuration that a name of `QUANTIZATIONS` stands for."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    _check_name("quantization_config", name)
    if name == "int4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if importlib.util.find_spec("torchao") is None:
        raise ImportError(f"quantization={name!r} needs torchao: {pip_install('torchao')}")
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    # The inductor settings that torchao recommends hold for the whole process and lengthen compilation.
    if name == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    on_gpu = torch.cuda.is_available() and not any(str(place) in ("None", "cpu", "cpu:0", "disk") for place in places)
    if on_gpu and torch.cuda.get_device_capability() >= (8, 9) and dtype == torch.bfloat16:
        return TorchAoConfig(
            Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        )
    logger.info("fp8: weights only; activations need a GPU of capability 8.9 or more, and dtype bfloat16")
    return TorchAoConfig(Float8WeightOnlyConfig(set_inductor_config=False))


def check_saveable(model: nn.Module) -> None:
    """Raise a ValueError if a quantised model can't be saved: bitsandbytes 0.50 saves what it packed for a CPU, and reads it wrongly."""
    config = getattr(model.config, "quantization_config", None)
    if getattr(config, "load_in_4bit", False) and model.device.type == "cpu":
        raise ValueError(
            "4-bit weights can't be saved from a CPU; keep the policy in full precision, and give quantization='int4' when it is "
            "loaded"
        )


def check_bitsandbytes() -> None:
    """Raise an ImportError if bitsandbytes is missing, a ValueError if it supports no device of this machine."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"4-bit and 8-bit weights need bitsandbytes: {pip_install('quantization')}")
    from transformers.integrations import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except RuntimeError as error:
        raise ValueError(f"bitsandbytes supports no device of this machine: {error}") from error
    # It warns of casts in every call of every layer.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_no_casts)


def _no_casts(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.msg


__all__ = ["QUANTIZATIONS", "check_bitsandbytes", "check_saveable", "of_backbone_only", "quantization_argument"]
