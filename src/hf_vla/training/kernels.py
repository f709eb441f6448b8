"""Liger's kernels for a policy's backbone."""

from torch import nn
from transformers.integrations import apply_liger_kernel


def apply_liger_to_backbone(model: nn.Module, options: dict | None) -> None:
    """Replace layers of the policy's backbone by Liger's kernels (`use_liger_kernel`).

    transformers hands Liger the whole model, and Liger leaves a model whose type it doesn't know as it is, without a word.

    Args:
        options: `liger_kernel_config`.

    Raises:
        ImportError: Liger is not installed.
        ValueError: the model has no backbone `vlm`, or one that Liger has no kernels for.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as kernels
    except ImportError as error:
        raise ImportError(
            f"use_liger_kernel needs Liger ({error}): pip install liger-kernel, which needs Triton and so a GPU; or leave it out"
        ) from error
    backbone = getattr(model, "vlm", None)
    if backbone is None:
        raise ValueError(f"use_liger_kernel is for a policy's backbone `vlm`, which {type(model).__name__} hasn't")
    if (model_type := backbone.config.model_type) not in kernels:
        raise ValueError(
            f"Liger has no kernels for the backbone's model_type {model_type!r}; it has some for "
            f"{', '.join(sorted(kernels))}. Leave use_liger_kernel out"
        )
    apply_liger_kernel(backbone, options)


__all__ = ["apply_liger_to_backbone"]
