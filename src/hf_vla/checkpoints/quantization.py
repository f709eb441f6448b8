"""Backbones in 4 or 8 bits (bitsandbytes): the backbone only, never the modules that the actions come out of."""

import copy
import importlib.util
import logging

import torch
from torch import nn

from ..utils.extras import pip_install


def of_backbone_only(quantization_config, model_class: type, config):
    """Return a bitsandbytes configuration that skips all modules outside the backbone, and its language-model head.

    Other libraries' configurations, and one that sets `llm_int8_skip_modules` itself, are returned unchanged.

    Args:
        quantization_config: `BitsAndBytesConfig`, or another library's.
        model_class, config: the policy's class and configuration.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: bitsandbytes supports no device of this machine.
    """
    from transformers import BitsAndBytesConfig

    if not isinstance(quantization_config, BitsAndBytesConfig):
        return quantization_config
    check_bitsandbytes()
    if quantization_config.llm_int8_skip_modules is not None:
        return quantization_config
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    skipped = [name for name, _ in model.named_children() if name != "vlm"]
    head = model.get_output_embeddings()
    skipped += [name for name, module in model.named_modules() if module is head]
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


__all__ = ["check_bitsandbytes", "of_backbone_only"]
