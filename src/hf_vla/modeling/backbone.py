"""The vision-language backbone: build it, and read its layers' states as the checkpoint's training read them."""

import inspect
import threading
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ..processing.backbone_families import find_family
from ..transformers_internals import image_text_to_text_class
from .stages import stage
from .static_backbone import BackbonePlan, image_features, language_states, make_plan, why_not_planned


def build_backbone(vlm_config: PreTrainedConfig) -> PreTrainedModel:
    """Build the backbone that `vlm_config.model_type` names, with new weights, in torch's default dtype."""
    model_class = image_text_to_text_class(vlm_config)
    if model_class is None:
        raise ValueError(
            f"no vision-language backbone is known for model_type {vlm_config.model_type!r}; "
            "vlm_config must name an image-text-to-text model of transformers, such as 'qwen3_vl' or 'qwen2_5_vl'"
        )
    # The head's dtype, not the one that the backbone's own configurations record.
    for config in (vlm_config, *(getattr(vlm_config, name, None) for name in vlm_config.sub_configs)):
        if config is not None:
            config.dtype = torch.get_default_dtype()
    vlm = model_class(vlm_config)
    decoder = vlm.get_decoder()
    if missing := [name for name in ("layers", "norm") if not hasattr(decoder, name)]:
        raise ValueError(
            f"{type(vlm).__name__} can't be a policy's backbone: its decoder, a {type(decoder).__name__}, has no "
            f"{' and no '.join(missing)}, at which the states of its layers are read"
        )
    for layer in decoder.layers:
        layer.register_forward_pre_hook(_on_layer_input, with_kwargs=True)
        layer.register_forward_hook(_on_layer_output)
    decoder.norm.register_forward_pre_hook(_on_norm_input)
    vlm.get_input_embeddings().register_forward_hook(_on_embeddings)
    for name, module in vlm.named_modules():
        if name.endswith("patch_embed.proj") and type(module) is nn.Conv3d and module.kernel_size == module.stride:
            module.__class__ = PatchProjection
    return vlm


class PatchProjection(nn.Conv3d):
    """A convolution of patches that are as large as its kernel, on GPUs by the matrix product that it is.

    In bfloat16 cuDNN's 3D convolutions are slow (transformers #45750). On a CPU numbers stay as they were, bit for bit.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, frames, side, side), the kernel's -> (N, width, 1, 1, 1)"""
        if x.device.type == "cpu" or x.shape[2:] != self.kernel_size:
            return super().forward(x)
        return self.product(x)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """As `forward`."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def run_backbone(vlm: PreTrainedModel, **inputs):
    """Run the backbone without its language-model head.

    Args:
        vlm: an image-text-to-text model.
        inputs: the backbone's inputs: `input_ids` (B, L), `attention_mask` (B, L), `pixel_values`, …

    Returns:
        transformers' output, with `last_hidden_state` (B, L, hidden_size).
    """
    accepted = inspect.signature(vlm.model.forward).parameters
    if unknown := sorted(set(inputs) - set(accepted)):
        raise TypeError(
            f"{type(vlm).__name__} takes no {', '.join(unknown)}; its inputs are "
            f"{', '.join(name for name, p in accepted.items() if p.kind is not p.VAR_KEYWORD)}"
        )
    inputs = with_positions(vlm, with_token_types(vlm, inputs))
    with stage("backbone"):
        return vlm.model(**inputs, use_cache=False, return_dict=True)


def last_state(vlm: PreTrainedModel, **inputs) -> torch.Tensor:
    """Run the backbone and return its last state after the final norm (B, L, hidden_size)."""
    if torch.compiler.is_compiling() and why_not_planned(vlm, inputs) is None:
        return layer_states(vlm, "transformers-5", **inputs)[-1]
    return run_backbone(vlm, **inputs).last_hidden_state


def with_token_types(vlm: PreTrainedModel, inputs: dict) -> dict:
    """Add `mm_token_type_ids` (B, L), 1 at image tokens, to the backbone's inputs if the backbone takes them."""
    image_token_id = getattr(vlm.config, "image_token_id", None)
    if inputs.get("mm_token_type_ids") is not None:
        return inputs
    if image_token_id is None or "mm_token_type_ids" not in inspect.signature(vlm.model.forward).parameters:
        return {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    return inputs | {"mm_token_type_ids": (inputs["input_ids"] == image_token_id).int()}


def with_positions(vlm: PreTrainedModel, inputs: dict) -> dict:
    """Add `position_ids` (B, L) to the backbone's inputs that count from each sample's first token, as in generation.

    This is for backbones with one-dimensional positions, which would count left padding; Qwen-VL computes its positions from
    the mask.
    """
    mask = inputs.get("attention_mask")
    if mask is None or inputs.get("position_ids") is not None or hasattr(vlm.model, "get_rope_index"):
        return inputs
    return inputs | {"position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}


@dataclass
class TokenEmbeddings:
    """Embeddings that replace those of some tokens of the prompt, for example learned queries.

    Args:
        positions: integers (B, K), the tokens' positions in the prompts.
        embeddings: (K, hidden_size), or (B, K, hidden_size).
    """

    positions: torch.Tensor
    embeddings: torch.Tensor


def layer_states(
    vlm: PreTrainedModel,
    convention: str,
    *,
    token_embeddings: TokenEmbeddings | None = None,
    plan: BackbonePlan | None = None,
    up_to: int = -1,
    **inputs,
) -> list[torch.Tensor]:
    """Run the backbone (without its language-model head) and return h[0] … h[N] of its N decoder layers.

    `convention` defines what these are:

    * `"transformers-4.57"`: h[i] is the *input* of layer i, so it includes Qwen3-VL's deepstack additions; h[N] of Qwen3-VL
      is the last layer's output *before* the final norm, that of every other backbone *after* it.
    * `"transformers-5"`: h[i + 1] is the *output* of layer i, without deepstack additions; h[N] is after the final norm.

    Both are the same under every version of transformers, because they are read at the layers themselves. Several threads
    can call this with the same backbone.

    Args:
        vlm: an image-text-to-text model, from `build_backbone`.
        token_embeddings: what replaces the embeddings of some tokens.
        plan: of these inputs; the backbone then runs by [`~hf_vla.modeling.static_backbone`]. Inside `torch.compile` it does so
            without one too, if it can.
        up_to: the index of the last state that is needed, -1 for h[N]. No layer after it runs by a plan, or
            without gradients, unless in a process group.
        inputs: the backbone's inputs: `input_ids` (B, L), `attention_mask` (B, L), `pixel_values`, …

    Returns:
        N + 1 tensors (B, L, hidden_size), or up_to + 1.
    """
    number = len(vlm.get_decoder().layers)
    up_to %= number + 1
    if plan is None and torch.compiler.is_compiling() and why_not_planned(vlm, inputs) is None:
        plan = make_plan(vlm, **inputs)
    if plan is not None:
        with stage("backbone"):
            return _planned_states(vlm, convention, plan, token_embeddings, up_to, **inputs)
    call = _Call(inputs_of_layers=convention == "transformers-4.57", token_embeddings=token_embeddings)
    # Under FSDP and ZeRO, modules must end as they begin.
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if up_to < number and not torch.is_grad_enabled() and not in_group:
        call.stops_after = up_to + 1
    before, _running.call = getattr(_running, "call", None), call
    try:
        output = run_backbone(vlm, **inputs)
    except _Stop:
        return call.layers
    finally:
        _running.call = before
    if len(call.layers) < number or call.token_embeddings is not None:
        raise ValueError(
            f"this {type(vlm).__name__} is not from build_backbone, so the states of its layers are not recorded"
        )
    if _ends_before_norm(vlm, convention):
        states = call.layers + [call.before_norm]
    else:
        states = call.layers[:number] + [output.last_hidden_state]
    return states[: up_to + 1]


def _ends_before_norm(vlm: PreTrainedModel, convention: str) -> bool:
    family = find_family(vlm.config.model_type)
    return convention == "transformers-4.57" and family is not None and family.last_state_before_norm


def _planned_states(
    vlm, convention, plan, token_embeddings, up_to, *, input_ids, pixel_values, attention_mask=None, image_grid_thw=None,
    mm_token_type_ids=None,
) -> list[torch.Tensor]:  # fmt: skip
    """As `layer_states`. The last three inputs are in the plan."""
    embeddings = vlm.get_input_embeddings()(input_ids)
    if token_embeddings is not None:
        embeddings = _replaced(embeddings, token_embeddings)
    features, deep = image_features(vlm.model.visual, plan, pixel_values)
    decoder = vlm.get_decoder()
    states, outputs = language_states(decoder, plan, embeddings, features, deep, number=up_to)
    last = states[-1]
    if up_to == len(decoder.layers) and not _ends_before_norm(vlm, convention):
        last = decoder.norm(last)
    elif convention != "transformers-4.57" and outputs:
        last = outputs[-1]
    before = states[:-1] if convention == "transformers-4.57" else [states[0], *outputs[:-1]][:up_to]
    return [*before, last]


# The hooks are registered once. They find what the current call reads and records in a `threading.local`: hooks that were
# registered per call would also see the calls of other threads. Unlike a ContextVar, it can be traced by torch.compile.


@dataclass
class _Call:
    """One run of the backbone, for the hooks on its modules."""

    inputs_of_layers: bool  # record the inputs of all layers; else the input of the first, and all outputs
    token_embeddings: TokenEmbeddings | None
    layers: list[torch.Tensor] = field(default_factory=list)
    before_norm: torch.Tensor | None = None
    stops_after: int | None = None  # states, after which the run ends

    def record(self, state: torch.Tensor) -> None:
        self.layers.append(state)
        if len(self.layers) == self.stops_after:
            raise _Stop


class _Stop(Exception):
    """All states that are needed are recorded."""


_running = threading.local()  # `_running.call` is the call that runs in this thread, if any


def _on_layer_input(module, args, kwargs) -> None:
    call = getattr(_running, "call", None)
    if call is not None and (call.inputs_of_layers or not call.layers):
        call.record(args[0] if args else kwargs["hidden_states"])


def _on_layer_output(module, args, output) -> None:
    call = getattr(_running, "call", None)
    if call is not None and not call.inputs_of_layers:
        call.record(output[0] if isinstance(output, tuple) else output)


def _on_norm_input(module, args) -> None:
    call = getattr(_running, "call", None)
    if call is not None:
        call.before_norm = args[0]


def _on_embeddings(module, args, output) -> torch.Tensor | None:
    call = getattr(_running, "call", None)
    if call is None or call.token_embeddings is None:
        return None
    tokens, call.token_embeddings = call.token_embeddings, None
    return _replaced(output, tokens)


def _replaced(embeddings: torch.Tensor, tokens: TokenEmbeddings) -> torch.Tensor:
    index = tokens.positions[..., None].expand(-1, -1, embeddings.shape[-1])
    return embeddings.scatter(1, index, tokens.embeddings.to(embeddings.dtype).expand(index.shape))


__all__ = ["TokenEmbeddings", "build_backbone", "last_state", "layer_states", "run_backbone", "with_token_types"]
