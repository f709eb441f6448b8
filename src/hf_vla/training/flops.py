"""The floating-point operations of a training step, counted from the model's matrices and a batch's shapes; peaks of devices.

Only matrix products count, and what is computed again for activation checkpointing does not, as usual for the model FLOPs
utilisation (MFU; Chowdhery et al. 2022, appendix B): a matrix of P numbers takes 2 P operations per row in the forward pass, as
many for the gradient of its input, and as many for its own. Attention takes 4 · queries · keys · width in the forward pass,
causal or not, and twice that in the backward pass.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoints.adapted_modules import plain_name
from ..modeling.action_head import DenoisingActionHead
from ..modeling.modeling_vla import VLAPreTrainedModel
from ..modeling.qwen_adapter.modeling_qwen_adapter import AdapterActionHead
from ..modeling.qwen_oft.modeling_qwen_oft import RegressionActionHead
from ..modeling.static_backbone import PLANNED


class Shapes(NamedTuple):
    """What the number of operations depends on.

    Args:
        batch, tokens: B samples of L tokens each, padding included.
        patches, images: of the vision tower, in all samples together.
        views, view_size: of DINO (QwenDual), images per sample and their height in pixels.
        labelled: tokens that get logits.
    """

    batch: int
    tokens: int
    patches: int = 0
    images: int = 0
    views: int = 0
    view_size: int = 0
    labelled: int = 0


def shapes_of(batch: Mapping) -> Shapes:
    """Read the shapes of a batch as a processor makes it. Labels are read: the host may wait for them."""
    pixels = batch.get("pixel_values", ())
    grids, dino, labels = (batch.get(name) for name in ("image_grid_thw", "dino_pixel_values", "labels"))
    return Shapes(
        *batch["input_ids"].shape,
        patches=len(pixels),
        images=0 if grids is None else len(grids),
        views=0 if dino is None else dino.shape[1],
        view_size=0 if dino is None else dino.shape[3],
        labelled=0 if labels is None else int((labels[:, 1:] != -100).sum()),
    )


class _Product(NamedTuple):
    """`rows` times a matrix of `size` numbers, or an attention of as many operations (`rows` 0)."""

    size: float
    rows: float
    trained: bool
    gradient_of_input: bool

    def flops(self) -> float:
        if not self.rows:
            return self.size * (1 + 2 * (self.trained or self.gradient_of_input))
        return 2 * self.size * self.rows * (1 + self.trained + self.gradient_of_input)


def training_flops(model: nn.Module, shapes: Shapes, conversations: Shapes | None = None) -> float | None:
    """Return the floating-point operations of forward and backward pass of a batch.

    Args:
        model: a policy, with an adapter or without. Which parameters require gradients decides what the backward pass computes.
        shapes: of the batch. Images are taken to be of equal size, as are the windows of Qwen2.5-VL.
        conversations: of its `vlm_batch`, if there is one.

    Returns:
        None if the operations of the framework or of its backbone are not known here.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT model
    if not isinstance(model, VLAPreTrainedModel) or model.vlm.config.model_type not in PLANNED:
        return None
    known = {"vlm", "dino", "dino_projector", "projectors", "action_head"}
    head = _unwrapped(getattr(model, "action_head", None))
    if head is not None and not isinstance(head, (RegressionActionHead, AdapterActionHead, DenoisingActionHead)):
        return None
    if any(name not in known and any(True for _ in module.parameters()) for name, module in model.named_children()):
        return None
    products = [*_of_backbone(model, shapes), *_of_head(model, head, shapes)]
    if conversations is not None:
        products += _of_backbone(model, conversations)
    return float(sum(product.flops() for product in products))


def _unwrapped(module: nn.Module | None) -> nn.Module | None:
    """Without PEFT's wrapper of a module that is trained in full."""
    return module.modules_to_save["default"] if hasattr(module, "modules_to_save") else module


def _matrices(module: nn.Module, upstream: bool) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield names and parameters of matrices, and whether their input needs a gradient: whether anything before is trained."""
    for name, parameter in module.named_parameters():
        if "original_module" in name:  # PEFT's copy of what is trained
            continue
        looked_up = any(part in name for part in ("embed_tokens", "pos_embed", "lm_head"))
        if _numel(parameter) and len(_shape(parameter)) >= 2 and not looked_up:
            yield plain_name(name), parameter, upstream
        upstream = upstream or parameter.requires_grad


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs four bits
    return tuple(getattr(parameter, "ds_shape", parameter.shape if state is None else state.shape))


def _numel(parameter: nn.Parameter) -> int:
    return torch.Size(_shape(parameter)).numel()


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _of_backbone(policy: VLAPreTrainedModel, shapes: Shapes) -> list[_Product]:
    vlm = policy.vlm
    visual, language_model = vlm.model.visual, vlm.get_decoder()
    products = []
    if shapes.patches:
        merged = visual.spatial_merge_size**2
        for name, parameter, upstream in _matrices(visual, False):
            rows = shapes.patches / (merged if "merger" in name else 1)
            products.append(_Product(_numel(parameter), rows, parameter.requires_grad, upstream))
        config, trained = visual.config, _trains(visual)
        width, per_image = config.hidden_size, shapes.patches / max(shapes.images, 1)
        for index in range(len(visual.blocks)):
            keys = per_image
            if hasattr(visual, "window_size") and index not in visual.fullatt_block_indexes:
                keys = min(keys, (visual.window_size // visual.patch_size) ** 2)
            products.append(_Product(4 * shapes.patches * keys * width, 0, trained, False))
    upstream, rows = shapes.patches > 0 and _trains(visual), shapes.batch * shapes.tokens
    upstream = upstream or vlm.get_input_embeddings().weight.requires_grad
    text = vlm.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 4 * shapes.batch * shapes.tokens**2 * text.num_attention_heads * head_dim
    for layer in language_model.layers[: _layers_read(policy)]:
        for _, parameter, before in _matrices(layer, upstream):
            products.append(_Product(_numel(parameter), rows, parameter.requires_grad, before))
        upstream = upstream or _trains(layer)
        products.append(_Product(attention, 0, upstream, False))
    if shapes.labelled:
        logits = vlm.get_output_embeddings().weight
        products.append(_Product(_numel(logits), shapes.labelled, logits.requires_grad, upstream))
    return products


def _layers_read(policy: VLAPreTrainedModel) -> int:
    """Of the language model: those after the last that the framework reads do nothing for the loss."""
    config, number = policy.config, policy.config.vlm_num_layers
    head = _unwrapped(getattr(policy, "action_head", None))
    if isinstance(head, AdapterActionHead):
        return min(config.num_action_layers, number)
    if (index := getattr(config, "connect_layer_index", None)) is not None:
        return range(number + 1)[index]
    blocks = head.transformer.transformer_blocks if isinstance(head, DenoisingActionHead) else ()
    return max((index for index, block in enumerate(blocks) if block.is_cross), default=number - 1) + 1


def _of_head(policy: VLAPreTrainedModel, head: nn.Module | None, shapes: Shapes) -> Iterator[_Product]:
    """The products outside the backbone, for each module by how many rows it is given."""
    config, batch, upstream = policy.config, shapes.batch, _trains(policy.vlm)
    keys = shapes.tokens  # of the observation, per sample
    if (dino := _unwrapped(getattr(policy, "dino", None))) is not None:
        patches = (shapes.view_size // config.dino_config.patch_size) ** 2
        projector = _unwrapped(policy.dino_projector)
        yield from _of_dino(config.dino_config, dino, projector, shapes.batch * shapes.views, patches)
        keys += shapes.views * patches
        upstream = upstream or _trains(dino) or _trains(projector)
    if (projectors := getattr(policy, "projectors", None)) is not None:
        for _, parameter, before in _matrices(projectors, upstream):
            yield _Product(_numel(parameter), batch * keys, parameter.requires_grad, before)
        upstream = upstream or _trains(projectors)
    if isinstance(head, RegressionActionHead):
        for _, parameter, before in _matrices(head, upstream):
            yield _Product(_numel(parameter), batch * config.action_horizon, parameter.requires_grad, before)
    elif isinstance(head, AdapterActionHead):
        yield from _of_adapter(config, head, batch, keys, upstream)
    elif head is not None:
        yield from _of_transformer(config, head, batch, keys, upstream)


def _of_dino(config, dino: nn.Module, projector: nn.Linear, images: int, patches: int) -> Iterator[_Product]:
    for name, parameter, upstream in _matrices(dino, False):
        if not any(part in name for part in ("cls_token", "mask_token", "position_embeddings")):
            is_first = "patch_embeddings" in name  # of images, though tokens that are trained come before
            rows = images * (patches if is_first else patches + 1)
            yield _Product(_numel(parameter), rows, parameter.requires_grad, upstream and not is_first)
    attention = 4 * images * (patches + 1) ** 2 * config.hidden_size * config.num_hidden_layers
    yield _Product(attention, 0, _trains(dino), False)
    yield _Product(_numel(projector.weight), images * patches, projector.weight.requires_grad, _trains(dino))


def _of_adapter(config, head: AdapterActionHead, batch: int, tokens: int, upstream: bool) -> Iterator[_Product]:
    horizon, width = config.action_horizon, config.vlm_hidden_size
    queries = config.num_action_queries + bool(config.state_dim)
    rows = {"self": batch * horizon, "adapter": batch * queries, "task": batch * tokens}
    rows["proj"] = sum(rows.values())
    for name, parameter, before in _matrices(head, upstream):
        part = re.search(r"\.[kv]_(self|adapter|task|proj)\.", name)
        if name.startswith(("action_queries", "chunk_embeddings")):
            continue
        if name.startswith("state_projector"):
            number = batch
        elif name == "fc1.weight":  # before the batch's samples differ
            number = horizon
        else:
            number = rows[part[1]] if part else batch * horizon
        yield _Product(_numel(parameter), number, parameter.requires_grad, before)
    attention = 4 * batch * horizon * (horizon + queries + tokens) * width * len(head.blocks)
    yield _Product(attention, 0, _trains(head), upstream)


def _of_transformer(config, head: DenoisingActionHead, batch: int, keys: int, upstream: bool) -> Iterator[_Product]:
    transformer, copies = head.transformer, batch * config.repeated_diffusion_steps
    discrete = hasattr(head, "token_embedding")
    own = config.action_horizon * (config.action_dim if discrete else 1)  # tokens that become actions, of each copy
    mixing = [index for index, block in enumerate(transformer.transformer_blocks) if not block.is_cross]
    prefix = 0
    if transformer.interleave_self_attention or transformer.sinusoidal_positions:
        prefix = config.num_future_tokens + bool(config.state_dim)
    times = 1 if discrete else copies  # discrete diffusion is not told the time
    rows = {
        "timestep_encoder": times,
        "proj_out_1": times if head.use_output_head else 0,
        "proj_out_2": copies * own if head.use_output_head else 0,
        "state_encoder": batch if prefix else 0,
        "action_encoder": copies * own,
        "action_decoder": copies * own,
    }
    for name, parameter, before in _matrices(head, upstream):
        part = name.split(".")
        if part[:2] != ["transformer", "transformer_blocks"]:
            if number := rows.get(part[1] if part[0] == "transformer" else part[0]):
                yield _Product(_numel(parameter), number, parameter.requires_grad, before)
            continue
        index, block = int(part[2]), transformer.transformer_blocks[int(part[2])]
        asking = copies * (own + (prefix if index < max(mixing, default=0) else 0))
        asked = batch * keys if block.is_cross else copies * (own + prefix)
        if part[3] == "norm1":
            number = times
        else:
            number = asked if part[4] in ("to_k", "to_v") else asking
        if block.is_cross and part[4] in ("to_k", "to_v"):
            before = upstream
        yield _Product(_numel(parameter), number, parameter.requires_grad, before)
        if part[4] == "to_q":
            attended = asking * (keys if block.is_cross else own + prefix)
            yield _Product(4 * attended * _shape(parameter)[0], 0, _trains(head), upstream)


# --------------------------------------------------------------------------------------------------- peaks of devices

#: TFLOP/s of dense matrix products by the makers' data sheets: in bfloat16, in float32 by TF32, in float32
PEAK_TFLOPS = {
    "B200": (2250, 1125, 75),
    "GB200": (2500, 1250, 80),
    "H200 NVL": (835, 418, 60),
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H100": (989, 495, 67),
    "GH200": (989, 495, 67),
    "H800": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "A800": (312, 156, 19.5),
    "A40": (150, 75, 37),
    "A10": (125, 62.5, 31),
    "A10G": (70, 35, 31),
    "L40S": (362, 183, 92),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30),
    "RTX A6000": (155, 77, 39),
    "RTX 6000 Ada": (364, 182, 91),
    "RTX 3090": (71, 36, 36),
    "RTX 4090": (165, 83, 83),
    "RTX 5090": (210, 105, 105),
}


def peak_flops(device_name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """Return the FLOP/s that a device reaches at most in matrix products, or None if it is not in `PEAK_TFLOPS`.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        dtype: in which is computed; float16 is as fast as bfloat16.
        tf32: whether float32 products are rounded to TF32.
    """
    names = [name for name in PEAK_TFLOPS if re.search(rf"\b{re.escape(name)}\b", device_name)]
    if not names:
        return None
    column = 0 if dtype in (torch.bfloat16, torch.float16) else 1 if tf32 else 2
    return 1e12 * PEAK_TFLOPS[max(names, key=len)][column]


__all__ = ["PEAK_TFLOPS", "Shapes", "peak_flops", "shapes_of", "training_flops"]
