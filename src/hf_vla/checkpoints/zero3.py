"""Weights under DeepSpeed's ZeRO-3, in which each process holds a share of every parameter and sees an empty tensor.

transformers partitions a model as it is made, once `TrainingArguments` with such a configuration exist. Code that reads or
writes weights outside of a forward pass goes through here; without ZeRO-3 these functions do the plain thing.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers.integrations import deepspeed as integration, is_deepspeed_zero3_enabled

from ..transformers_internals import deepspeed_config


@contextlib.contextmanager
def not_partitioned() -> Iterator[None]:
    """Models made or loaded within are whole in every process."""
    config = deepspeed_config()
    if config is None:
        yield
        return
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration.set_hf_deepspeed_config(config)


def writes_weights() -> bool:
    """Whether this process's values are those that a partitioned model takes: the first's are."""
    return not (is_deepspeed_zero3_enabled() and torch.distributed.is_initialized() and torch.distributed.get_rank())


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


@torch.no_grad()
def copy_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Write `weights` into the parameters and buffers of these names; all must be there, in the same shapes."""
    own = module.state_dict(keep_vars=True)
    for name, value in weights.items():
        with _whole(own[name]):
            own[name].copy_(value)


def _whole(parameter: torch.Tensor) -> contextlib.AbstractContextManager:
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
