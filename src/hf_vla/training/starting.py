"""The model that a run starts from: weights of another policy, settings that the run overrides."""

import re

import torch
from transformers import AutoModel
from transformers.utils import logging

from ..checkpoints.adapted_modules import merge
from ..checkpoints.zero3 import copy_weights, full_shape, not_partitioned
from .patterns import matching_parameters

logger = logging.get_logger(__name__)


def set_repeated_diffusion_steps(model: torch.nn.Module, steps: int) -> None:
    """Override how many noise draws of each sample one training step has.

    Raises:
        ValueError: the policy draws no noise.
    """
    if not hasattr(model.config, "repeated_diffusion_steps"):
        raise ValueError(
            f"repeated_diffusion_steps is for policies that draw noise; {model.config.model_type} doesn't, so leave it out"
        )
    model.config.repeated_diffusion_steps = steps


def load_pretrained(model: torch.nn.Module, source: str, patterns: list[str] | None = None) -> None:
    """Copy the weights of another policy into `model`: all, or those whose names a pattern matches.

    Raises:
        ValueError: a pattern matches nothing, or a parameter that is to be loaded is missing or of another shape.
    """
    with not_partitioned():
        weights = merge(AutoModel.from_pretrained(source, dtype=model.dtype)).state_dict()
    own = model.state_dict(keep_vars=True)
    names = set(own)
    if patterns:
        matched = set().union(*(matching_parameters(model, pattern, "reload_modules") for pattern in patterns))
        names = {name for name in own if name in matched}
    bad = sorted(n for n in names if n not in weights or weights[n].shape != full_shape(own[n]))
    # What is only there: more layers than this model has would load by halves.
    bad += sorted(n for n in weights.keys() - own.keys() if not patterns or any(re.search(p, n) for p in patterns))
    if bad:
        raise ValueError(
            f"{source} does not fit this model: {len(bad)} tensors are in one only or of another shape, for example {bad[0]}; "
            "name the modules that fit in reload_modules"
        )
    copy_weights(model, {name: weights[name] for name in sorted(names)})  # the same order in all processes
    logger.warning(f"loaded {len(names)} of {len(own)} tensors from {source}")


__all__ = ["load_pretrained", "set_repeated_diffusion_steps"]
