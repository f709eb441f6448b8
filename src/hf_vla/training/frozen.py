"""Frozen modules stay in evaluation mode while the rest trains: no dropout, no running statistics."""

from collections.abc import Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every module all of whose parameters are frozen, and all that is in it: a frozen block's Dropout too.

    A module without parameters inside of one that is trained belongs to the latter.
    """
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in model.children():
            yield from frozen_modules(child)
    elif parameters:
        yield from model.modules()


class FrozenInEval:
    """Puts a model's frozen modules into evaluation mode. They are looked for once: training doesn't unfreeze."""

    def __init__(self):
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []

    def apply(self, model: nn.Module) -> None:
        """To be called after each `model.train()`."""
        if self._model is not model:
            self._model, self._modules = model, list(frozen_modules(model))
        for module in self._modules:
            # Such a layer recomputes its activations in training mode only, which saves memory as much where it is frozen
            # between trained ones. Its own mode has no other effect: dropout is in the modules that it holds.
            module.training = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


__all__ = ["FrozenInEval", "frozen_modules"]
