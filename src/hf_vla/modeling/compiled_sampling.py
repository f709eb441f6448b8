"""`predict_action` as one compiled graph per shape of its inputs; on a GPU, one launch of a CUDA graph."""

import threading
from collections import OrderedDict
from types import FunctionType

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F
from transformers.utils import logging

from .sampling import SamplingOptions
from .static_backbone import BackbonePlan, make_plan, why_not_planned

logger = logging.get_logger(__name__)

#: Prompts are lengthened to a multiple of this number of tokens, so that few graphs serve all instructions.
PROMPT_MULTIPLE = 16
#: How many plans are kept. A plan belongs to a layout of images and prompts, whatever they show and say.
_KEPT_PLANS = 64


class CompiledSampling:
    """Runs a policy's `sample_actions` in one graph: vision tower, language model, action head, all denoising steps.

    What can't be part of a graph is done before it: positions and masks ([`~hf_vla.modeling.static_backbone`]), noise. There is
    one graph per batch size, set of image sizes, number of denoising steps and length of prompts; each is compiled at its
    first call. Several threads can call this.

    Args:
        backend: of `torch.compile`; None is inductor, with CUDA graphs on a GPU.
    """

    def __init__(self, backend=None):
        self.backend = backend
        self._graphs: dict[tuple, object] = {}
        self._plans: OrderedDict[tuple, BackbonePlan] = OrderedDict()
        self._lock = threading.RLock()

    def __reduce__(self):
        return type(None), ()  # copies of a policy are not compiled

    def __call__(self, policy, options: SamplingOptions, inputs: dict) -> torch.Tensor:
        """As `policy.sample_actions(options, **inputs)`, float32. Tensors may be on any device, best on the host."""
        options = policy.prepared_options(options, len(inputs["input_ids"]))
        if (reason := self.why_not(policy, options, inputs)) is not None:
            logger.warning_once(f"this call of {type(policy).__name__} does not run as one compiled graph: {reason}")
            inputs = {name: _moved(value, policy.device) for name, value in inputs.items()}
            return policy.sample_actions(options, **inputs).float()
        inputs = self.planned(policy, inputs)
        key = (policy.device, policy.dtype, _shape(options), _shape(inputs))
        with self._lock:
            if (graph := self._graphs.get(key)) is None:
                graph = self._graphs[key] = self._compile(policy.device)
            if policy.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            try:
                return graph(
                    policy, options, inputs
                ).clone()  # the next call of a CUDA graph overwrites what it returned
            except TorchDynamoException as error:
                reason = reason_of(error)
                logger.warning(f"{type(policy).__name__} can't be compiled, so this call runs as before: {reason}")
                self._graphs[key] = _sample
            return _sample(policy, options, inputs)

    def planned(self, policy, inputs: dict) -> dict:
        """Return the arguments of `sample_actions` with the backbone's plan, from which no step reads a tensor on the host."""
        inputs = self.arranged(policy, inputs)
        inputs["plan"] = self.plan(policy, inputs)
        if inputs["attention_mask"].all():
            inputs["attention_mask"] = None
        return {name: _moved(value, policy.device) for name, value in inputs.items()}

    def why_not(self, policy, options: SamplingOptions, inputs: dict) -> str | None:
        """Return why a call can't be one graph, or None if it can."""
        if options.on_step is not None:
            return "on_step is called between denoising steps"
        if len(set(getattr(policy, "hf_device_map", {}).values())) > 1:
            return "its weights are on several devices"
        if options.generator is not None:
            return "it draws from a generator between denoising steps; give noise instead"
        of_backbone = {name: x for name, x in inputs.items() if name not in ("state", *policy.head_inputs)}
        return why_not_planned(policy.vlm, of_backbone)

    @staticmethod
    def arranged(policy, inputs: dict) -> dict:
        """Return the inputs that a graph takes, the prompts on the host and padded after their ends."""
        inputs = {name: value for name, value in inputs.items() if value is not None and name != "mm_token_type_ids"}
        return inputs | _arranged(policy, inputs)

    def _compile(self, device: torch.device):
        how = {} if self.backend is None else {"backend": self.backend}
        if self.backend is None and device.type == "cuda":
            how["mode"] = "reduce-overhead"
        # torch limits how many graphs a function's code may have: each graph has a copy of its own.
        own = FunctionType(_sample.__code__.replace(), globals(), "sample_actions")
        return torch.compile(own, fullgraph=True, dynamic=False, **how)

    def plan(self, policy, inputs: dict) -> BackbonePlan:
        """Return the plan of inputs that are arranged, on the policy's device."""
        is_image = inputs["input_ids"] == policy.vlm.config.image_token_id
        key = tuple(_bytes(x) for x in (is_image, inputs["attention_mask"], inputs["image_grid_thw"]))
        key += (policy.device, policy.dtype)
        with self._lock:
            if (plan := self._plans.get(key)) is None:
                plan = self._plans[key] = make_plan(policy.vlm, **inputs).to(policy.device)
                if len(self._plans) > _KEPT_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
        return plan


def reason_of(error: Exception) -> str:
    """Return what an error of `torch.compile` says first, in one line; what follows is a stack and advice."""
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__


def _sample(policy, options: SamplingOptions, inputs: dict) -> torch.Tensor:
    return policy.sample_actions(options, **inputs).float()


def _arranged(policy, inputs: dict) -> dict:
    """The prompts on the host, padded after their ends to a multiple of `PROMPT_MULTIPLE` unless the policy attends padding.

    Causal attention never reaches padding there, so the language model needs no mask.
    """
    ids, mask = inputs["input_ids"].cpu(), inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.cpu()
    arranged = {"input_ids": ids, "attention_mask": mask, "image_grid_thw": inputs["image_grid_thw"].cpu()}
    if policy.attends_padding:
        return arranged
    length = ids.shape[1]
    from_end = mask.int().argmax(dim=1, keepdim=True)
    order = (torch.arange(length) + from_end) % length
    more = (0, -length % PROMPT_MULTIPLE)
    return arranged | {name: F.pad(arranged[name].gather(1, order), more) for name in ("input_ids", "attention_mask")}


def _moved(value, device: torch.device):
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def _bytes(x: torch.Tensor) -> bytes:
    return x.numpy().tobytes() + repr(x.shape).encode()


def _shape(value):
    """All that a graph depends on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.stride()
    if isinstance(value, dict):
        return tuple((name, _shape(x)) for name, x in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return tuple(map(_shape, value))
    return (type(value), _shape(vars(value))) if hasattr(value, "__dict__") else value


__all__ = ["PROMPT_MULTIPLE", "CompiledSampling", "reason_of"]
