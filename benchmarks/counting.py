"""What a call costs, counted operator by operator: FLOPs, bytes of weights that are read, launches. Nothing needs to be computed: models
on the meta device will do."""

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hf_vla.modeling.sampling import SamplingOptions
from hf_vla.modeling.static_backbone import BackbonePlan, make_plan


class Launches(TorchDispatchMode):
    """Counts operators that compute or copy, in `number`; others only look at a tensor in another way.

    With a model, `weight_bytes` are those of its parameters that are read, each time that they are read; of an embedding's table, the
    rows that are looked up.
    """

    def __init__(self, model: nn.Module | None = None):
        super().__init__()
        self.number = self.weight_bytes = 0
        self._weights = {} if model is None else {_storage(p): p for p in model.parameters()}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name.partition("::")[2]
        if not (operator.is_view or name in ("_unsafe_view", "detach", "device", "lift_fresh")):
            self.number += 1
            for x in tree_leaves((args, kwargs)) if self._weights else ():
                if isinstance(x, torch.Tensor) and _storage(x) in self._weights:
                    self.weight_bytes += _bytes(result if name in ("embedding", "index_select", "select") else x)
        return result


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage()._cdata


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


@dataclass
class Counts:
    """FLOPs (a multiplication and an addition are two), bytes of weights, operators (launches on a GPU), of one call."""

    flops: int
    weight_bytes: int
    launches: int


class _AsOne(TorchFunctionMode):
    """Counts attention and RMSNorm as one operator, which they are on a GPU; elsewhere they are made of several."""

    def __init__(self, launches: Launches):
        self.launches = launches

    def __torch_function__(self, function, types, args=(), kwargs=None):
        before = self.launches.number
        result = function(*args, **(kwargs or {}))
        if function in (nn.functional.scaled_dot_product_attention, torch.rms_norm, nn.functional.rms_norm):
            self.launches.number = before + 1
        return result


def count(model: nn.Module, function) -> Counts:
    """Count what a function does with a model. oneDNN's linear layers and flash attention on CPUs, unknown to the FLOP counter, are off."""
    launches, flops = Launches(model), FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), flops, launches, _AsOne(launches):
        function()
    return Counts(flops.get_total_flops(), launches.weight_bytes, launches.number)


def plan_on_host(model, inputs: dict) -> BackbonePlan:
    """Make the plan of host tensors for a model on any device, the meta device too, and return it on the model's."""
    visual, language_model = model.vlm.model.visual, model.vlm.model.language_model
    with _on_host(visual, "rotary_pos_emb"), _on_host(language_model, "rotary_emb"):
        return make_plan(model.vlm, **inputs).to(model.device)


@contextlib.contextmanager
def _on_host(parent: nn.Module, name: str):
    """Put a rotary embedding with numbers, on the host, in the place of one without."""
    there = getattr(parent, name)
    with torch.device("cpu"):
        setattr(parent, name, type(there)(there.config))
    try:
        yield
    finally:
        setattr(parent, name, there)


def static_prediction(model, inputs: dict, num_inference_steps: int | None = None):
    """Return a function without arguments that predicts a chunk by the static path, given a processor's outputs on the host."""
    plan = plan_on_host(model, inputs)
    given = {
        name: x.to(model.device) for name, x in inputs.items() if name not in ("attention_mask", "image_grid_thw")
    }
    with torch.device(model.device):
        options = SamplingOptions(num_inference_steps=num_inference_steps)
        options = model.prepared_options(options, len(inputs["input_ids"]))

    @torch.no_grad()
    def predict():
        return model.sample_actions(options, plan=plan, attention_mask=None, **given)

    return predict


__all__ = ["Counts", "Launches", "count", "plan_on_host", "static_prediction"]
