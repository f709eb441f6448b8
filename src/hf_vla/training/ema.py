"""The exponential moving average (EMA) of the trained weights: updated, swapped in for the weights, saved and loaded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from .engines import shards_weights

EMA_FILE = "ema.safetensors"
#: parameters that are averaged by one call; float32 copies of as many exist meanwhile if they have another dtype
_AT_ONCE = 64


class WeightAverage:
    """The average of the trainable parameters, in float32 on their devices.

    After update n = 1, 2, …, `average += (1 - d) * (weights - average)` with `d = min(decay, (1 + n) / (10 + n))`: it
    forgets the initial weights fast (the warm-up of TensorFlow's `ExponentialMovingAverage`).

    Args:
        decay: d after the warm-up.
        update_every: optimizer steps between updates.
    """

    def __init__(self, decay: float, update_every: int = 1):
        self.decay = decay
        self.update_every = update_every
        self.average: dict[str, torch.Tensor] = {}
        self._in_use = False

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Start from the weights of `model`, unless there is an average already."""
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in _trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after optimizer step `step` = 1, 2, …"""
        if step % self.update_every:
            return
        n = step // self.update_every
        decay = min(self.decay, (1 + n) / (10 + n))
        average_of, trained = get_ema_multi_avg_fn(decay), list(_trainable(model).items())
        for start in range(0, len(trained), _AT_ONCE):
            some = trained[start : start + _AT_ONCE]
            average_of([self.average[name] for name, _ in some], [p.detach().float() for _, p in some], None)

    @contextlib.contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Put the average in place of the weights of `model` inside the context.

        Nothing changes before training has begun, or if the average is in use already.
        """
        if self._in_use or not self.average:
            yield
            return
        parameters = _trainable(model)
        weights = {name: parameter.data for name, parameter in parameters.items()}
        self._in_use = True
        try:
            for name, parameter in parameters.items():
                parameter.data = self.average[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = weights[name]
            self._in_use = False

    def save(self, folder: str | Path) -> None:
        """Write `ema.safetensors`."""
        save_file(self.average, Path(folder) / EMA_FILE, metadata={"format": "pt"})

    def load(self, folder: str | Path, model: nn.Module) -> None:
        """Read `ema.safetensors` of a checkpoint.

        Raises:
            ValueError: the folder holds no average, or one of other parameters.
        """
        file = Path(folder) / EMA_FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no {EMA_FILE}: it was trained without ema_decay. Leave ema_decay out to resume from it, or "
                "start a new run from it with policy or pretrained_checkpoint"
            )
        average, parameters = load_file(file), _trainable(model)
        odd = sorted(average.keys() ^ parameters.keys())
        odd += [name for name in average if name in parameters and average[name].shape != parameters[name].shape]
        if odd:
            raise ValueError(
                f"{file} averages other parameters than those trained now: {len(odd)} differ, for example {odd[0]}; resume "
                "with the model and freeze_modules that it was saved with"
            )
        self.average = {name: average[name].to(parameter.device) for name, parameter in parameters.items()}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_engine(trainer) -> None:
    """Raise a ValueError if the engine leaves no process with whole weights to average."""
    engine = None
    if trainer.is_fsdp_enabled or trainer.is_distributed_loading_by_transformers:
        engine = "FSDP or another sharding"
    elif shards_weights(trainer.accelerator):
        engine = "DeepSpeed's ZeRO-3"
    if engine:
        raise ValueError(
            f"ema_decay averages whole weights, which no process has under {engine}; leave it out, or train with DDP, ZeRO-1 "
            "or ZeRO-2"
        )


class EMACallback(TrainerCallback):
    """Starts the average as training begins, and updates it after each step."""

    def __init__(self, ema: WeightAverage):
        self.ema = ema

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.ema.start(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.ema.update(model, state.global_step)


__all__ = ["EMA_FILE", "EMACallback", "WeightAverage", "check_engine"]
