"""The vision-language backbone: building it, and reading its layers' states in the meaning a checkpoint was trained with."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from ..processing.backbone_families import find_family


def build_backbone(vlm_config: PreTrainedConfig) -> PreTrainedModel:
    """The backbone that `vlm_config.model_type` names, with new weights, in torch's default dtype."""
    mapping = AutoModelForImageTextToText._model_mapping
    if type(vlm_config) not in mapping:
        raise ValueError(
            f"no vision-language backbone is known for model_type {vlm_config.model_type!r}; "
            "vlm_config must name an image-text-to-text model of transformers, such as 'qwen3_vl' or 'qwen2_5_vl'"
        )
    # One dtype with the head, not the one that the backbone's own configurations record.
    for config in (vlm_config, *(getattr(vlm_config, name, None) for name in vlm_config.sub_configs)):
        if config is not None:
            config.dtype = torch.get_default_dtype()
    vlm = mapping[type(vlm_config)](vlm_config)
    decoder = vlm.get_decoder()
    if missing := [name for name in ("layers", "norm") if not hasattr(decoder, name)]:
        raise ValueError(
            f"{type(vlm).__name__} can't be a policy's backbone: its decoder, a {type(decoder).__name__}, has no "
            f"{' and no '.join(missing)}, where the states of its layers are read"
        )
    return vlm


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
    return vlm.model(**inputs, use_cache=False, return_dict=True)


def with_token_types(vlm: PreTrainedModel, inputs: dict) -> dict:
    """The backbone's inputs with `mm_token_type_ids` (B, L), 1 at image tokens, where the backbone takes them."""
    image_token_id = getattr(vlm.config, "image_token_id", None)
    if inputs.get("mm_token_type_ids") is not None:
        return inputs
    if image_token_id is None or "mm_token_type_ids" not in inspect.signature(vlm.model.forward).parameters:
        return {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    return inputs | {"mm_token_type_ids": (inputs["input_ids"] == image_token_id).int()}


def with_positions(vlm: PreTrainedModel, inputs: dict) -> dict:
    """The backbone's inputs with `position_ids` (B, L) that count from each sample's first token, as in generation.

    For backbones with one-dimensional positions, which would count left padding; Qwen-VL's find their own by the mask.
    """
    mask = inputs.get("attention_mask")
    if mask is None or inputs.get("position_ids") is not None or hasattr(vlm.model, "get_rope_index"):
        return inputs
    return inputs | {"position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}


def layer_states(vlm: PreTrainedModel, convention: str, **inputs) -> list[torch.Tensor]:
    """Run the backbone (without its language-model head) and return h[0] … h[N] of its N decoder layers.

    `convention` settles what these are (StarVLA's semantics, section 2):

    * `"transformers-4.57"`: h[i] is the *input* of layer i, so that Qwen3-VL's deepstack additions are in it; h[N] of
      Qwen3-VL is the last layer's output *before* the final norm, of every other backbone *after* it.
    * `"transformers-5"`: h[i + 1] is the *output* of layer i, without deepstack additions; h[N] is after the final norm.

    Both are the same under every transformers version, because they are read at the layers themselves.

    Args:
        vlm: an image-text-to-text model.
        inputs: the backbone's inputs: `input_ids` (B, L), `attention_mask` (B, L), `pixel_values`, …

    Returns:
        N + 1 tensors (B, L, hidden_size).
    """
    decoder = vlm.get_decoder()
    with _recorded(decoder, inputs_of_layers=convention == "transformers-4.57") as recorded:
        output = run_backbone(vlm, **inputs)
    family = find_family(vlm.config.model_type)
    if convention == "transformers-4.57" and family is not None and family.last_state_before_norm:
        return recorded["layers"] + [recorded["before_norm"]]
    return recorded["layers"][: len(decoder.layers)] + [output.last_hidden_state]


@contextlib.contextmanager
def _recorded(decoder: nn.Module, inputs_of_layers: bool) -> Iterator[dict]:
    """Record the inputs of all decoder layers (or the input of the first and all outputs), and that of the final norm."""
    recorded = {"layers": [], "before_norm": None}

    def on_input(module, args, kwargs):
        recorded["layers"].append(args[0] if args else kwargs["hidden_states"])

    def on_output(module, args, output):
        recorded["layers"].append(output[0] if isinstance(output, tuple) else output)

    def before_norm(module, args):
        recorded["before_norm"] = args[0]

    layers = list(decoder.layers)
    with contextlib.ExitStack() as stack:
        for layer in layers if inputs_of_layers else layers[:1]:
            stack.callback(layer.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        for layer in [] if inputs_of_layers else layers:
            stack.callback(layer.register_forward_hook(on_output).remove)
        stack.callback(decoder.norm.register_forward_pre_hook(before_norm).remove)
        yield recorded
