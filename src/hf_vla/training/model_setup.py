"""What is done to a model before its training: weights of another policy, overridden settings, Liger's kernels."""

import re

from torch import nn
from transformers import AutoModel
from transformers.integrations import apply_liger_kernel
from transformers.utils import logging

from ..checkpoints.adapted_modules import merge
from ..checkpoints.zero3 import copy_weights, full_shape, not_partitioned
from .parameter_groups import matching_parameters

logger = logging.get_logger(__name__)


def load_pretrained(model: nn.Module, source: str, patterns: list[str] | None = None) -> None:
    """Copy the weights of another policy into `model`: all of them, or those whose names a pattern matches.

    Args:
        source: folder or Hub repository of a policy, in this format or StarVLA's.
        patterns: regular expressions (`reload_modules`).

    Raises:
        ValueError: a pattern matches nothing, or a parameter to load is missing or has another shape.
    """
    with not_partitioned():
        weights = merge(AutoModel.from_pretrained(source, dtype=model.dtype)).state_dict()
    own = model.state_dict(keep_vars=True)
    names = set(own)
    if patterns:
        matched = set().union(*(matching_parameters(model, pattern, "reload_modules") for pattern in patterns))
        names = {name for name in own if name in matched}
    bad = sorted(n for n in names if n not in weights or weights[n].shape != full_shape(own[n]))
    # Tensors that only the source has: a deeper model would otherwise be loaded in part.
    bad += sorted(n for n in weights.keys() - own.keys() if not patterns or any(re.search(p, n) for p in patterns))
    if bad:
        raise ValueError(
            f"{source} does not fit this model: {len(bad)} tensors are in only one of them or differ in shape, for example "
            f"{bad[0]}; name the modules that fit in reload_modules"
        )
    copy_weights(model, {name: weights[name] for name in sorted(names)})  # the same order in all processes
    logger.warning(f"loaded {len(names)} of {len(own)} tensors from {source}")


def set_repeated_diffusion_steps(model: nn.Module, steps: int) -> None:
    """Override how many noise draws of each sample a training step has.

    Raises:
        ValueError: the policy draws no noise.
    """
    if not hasattr(model.config, "repeated_diffusion_steps"):
        raise ValueError(
            f"repeated_diffusion_steps is for policies that draw noise; {model.config.model_type} doesn't, so leave it out"
        )
    model.config.repeated_diffusion_steps = steps


def apply_liger_to_backbone(model: nn.Module, options: dict | None) -> None:
    """Replace layers of the policy's backbone by Liger's kernels (`use_liger_kernel`).

    transformers passes the whole model to Liger, which silently leaves a model of an unknown type as it is.

    Args:
        options: `liger_kernel_config`.

    Raises:
        ImportError: Liger is not installed.
        ValueError: the model has no backbone `vlm`, or Liger has no kernels for it.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as kernels
    except ImportError as error:
        raise ImportError(
            f"use_liger_kernel needs Liger ({error}): pip install liger-kernel, which needs Triton and so a GPU; or leave it out"
        ) from error
    backbone = getattr(model, "vlm", None)
    if backbone is None:
        raise ValueError(
            f"use_liger_kernel is for a policy's backbone `vlm`, which {type(model).__name__} does not have"
        )
    if (model_type := backbone.config.model_type) not in kernels:
        raise ValueError(
            f"Liger has no kernels for the backbone's model_type {model_type!r}; it has some for "
            f"{', '.join(sorted(kernels))}. Leave use_liger_kernel out"
        )
    apply_liger_kernel(backbone, options)


__all__ = ["apply_liger_to_backbone", "load_pretrained", "set_repeated_diffusion_steps"]
