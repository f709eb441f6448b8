"""Strict loading: missing, unexpected and mis-shaped weights raise one error that names them."""

import contextlib
import copy

import torch
from torch import nn
from transformers.utils import logging

from .zero3 import not_partitioned


def raise_if_incomplete(source, info: dict) -> None:
    """Raise a ValueError that names missing, unexpected and mis-shaped weights, if there are any."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(_describe(key) for key in info.get(kind, ()))
        if keys:
            shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {shown}")
    if problems:
        raise ValueError(
            f"the weights of {source} do not fit this model ({'; '.join(problems)}). Load them with the configuration "
            "they were trained with, or check that the checkpoint is complete"
        )


def raise_if_shapes_differ(source, model_class, config, tensors: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError that names mis-shaped weights.

    transformers 5.23 can't report tied embeddings that the weights hold twice, as native ones do.
    """
    with not_partitioned(), torch.device("meta"):
        needed = model_class(copy.deepcopy(config)).state_dict()
    differ = {(n, x.shape, needed[n].shape) for n, x in tensors.items() if n in needed and x.shape != needed[n].shape}
    raise_if_incomplete(source, {"mismatched_keys": differ})


def align(model: nn.Module) -> None:
    """Copy CPU weights that a memory-mapped file holds at unaligned addresses, for which kernels round differently.

    With them, a policy that was saved and loaded would differ in the last bit of its predictions.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (nn.Parameter, torch.Tensor) and tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


@contextlib.contextmanager
def no_loading_report():
    """Silence transformers' warning of new weights; for calls that ask for new weights."""
    report = logging.get_logger("transformers.modeling_utils")

    def other(record):
        return "LOAD REPORT" not in record.getMessage()

    report.addFilter(other)
    try:
        yield
    finally:
        report.removeFilter(other)


def _describe(key) -> str:
    if isinstance(key, str):
        return key
    name, given, needed = key
    return f"{name} {tuple(given)} instead of {tuple(needed)}"


__all__ = ["align", "no_loading_report", "raise_if_incomplete", "raise_if_shapes_differ"]
