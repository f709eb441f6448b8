"""Estimate, without a GPU, what training a policy keeps per sample for the backward pass; for `memory.py`."""

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_vla.modeling.diffusion_transformer import Conditioning
from hf_vla.modeling.losses import ActionTargets


class _Attend(torch.autograd.Function):
    """Attention without its weights, as in flash attention: queries, keys, values and output are saved."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    return _Attend.apply(query, key, value).transpose(1, 2).contiguous(), None


class _Autocast(TorchFunctionMode):
    """Autocast to bfloat16 for the meta device, which has none: matrix products in bfloat16, everything else unchanged."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.functional.linear, torch.matmul, nn.functional.conv3d):
            args = [x.to(torch.bfloat16) if isinstance(x, torch.Tensor) else x for x in args]
        return function(*args, **(kwargs or {}))


class _Saved:
    """Count the bytes that autograd saves, apart from a module's weights and copies of them."""

    def __init__(self, module: nn.Module):
        self._weights = {p.untyped_storage()._cdata for p in module.parameters()}
        matrices = [tuple(p.shape) for p in module.parameters() if p.ndim > 1]
        self._shapes = {*matrices, *(shape[::-1] for shape in matrices)}
        self._storages: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in self._weights and tuple(tensor.shape) not in self._shapes:
            self._storages[address] = tensor  # kept, so that its address stays its own
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._storages.values())


def saved_bytes(module: nn.Module, call, autocast: bool) -> int:
    """Return how many bytes autograd saves in `call()`, apart from `module`'s weights and their copies."""
    saved = _Saved(module)
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
    with hooks, _Autocast() if autocast else contextlib.nullcontext():
        call()
    return saved.bytes


@dataclass
class Activations:
    """Bytes that each sample keeps for the backward pass, with and without activation checkpointing."""

    whole: int
    checkpointed: int


def activations(
    policy: nn.Module, images: int, text_tokens: int, autocast: bool, backbone: bool = True
) -> Activations:
    """Estimate them for one sample by running each kind of block of a policy on the meta device once.

    Args:
        policy: a QwenPI_v3 on the meta device, in bfloat16, or in float32 with `autocast`.
        images, text_tokens: the numbers in a sample; images have 224 x 224 pixels.
        backbone: whether the backbone is trained; a frozen one keeps nothing.
    """
    AttentionInterface.register("estimate", _attend)
    policy.set_attn_implementation("estimate")
    text, vision = policy.config.vlm_config.get_text_config(), policy.config.vlm_config.vision_config
    patches = images * (224 // vision.patch_size) ** 2
    tokens = patches // vision.spatial_merge_size**2 + 2 * images + text_tokens
    decoder, tower = policy.vlm.get_decoder().layers, policy.vlm.model.visual.blocks
    head = [m for m in policy.action_head.modules() if isinstance(m, GradientCheckpointingLayer)]

    def states(*shape: int) -> torch.Tensor:
        dtype = torch.float32 if autocast else torch.bfloat16
        return torch.empty(*shape, device="meta", dtype=dtype, requires_grad=True)

    def first_block(blocks, x, *args, **kwargs) -> tuple[int, int, int]:
        """Return the number of blocks, the bytes of one block's input, and the bytes that it saves."""
        return len(blocks), x.nbytes, saved_bytes(blocks[0], lambda: blocks[0](x, *args, **kwargs), autocast)

    kinds = []
    if backbone:
        angles = (states(1, tokens, text.head_dim).detach(),) * 2
        x = states(1, tokens, text.hidden_size)
        kinds.append(first_block(decoder, x, position_embeddings=angles, attention_mask=None))
    if backbone and images:
        angles = (states(patches, vision.hidden_size // vision.num_heads).detach(),) * 2
        ends = torch.arange(images + 1, dtype=torch.int32) * (patches // images)
        kinds.append(first_block(tower, states(patches, vision.hidden_size), ends, position_embeddings=angles))
    calls = []
    hook = head[0].register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    with_head = saved_bytes(policy, lambda: _run_head(policy, states(1, tokens, text.hidden_size)), autocast)
    hook.remove()
    kinds.append(first_block(head, *calls[0][0], **calls[0][1]))
    rest = max(0, with_head - kinds[-1][0] * kinds[-1][2])  # projectors, encoders, loss
    return Activations(
        sum(number * saved for number, _, saved in kinds) + rest,
        sum(number * given for number, given, _ in kinds) + max(saved for *_, saved in kinds) + rest,
    )


def _run_head(policy, state: torch.Tensor) -> None:
    """Projectors and action head on one sample's state, given for all layers."""
    config, head = policy.config, policy.action_head
    conditioning = Conditioning([project(state.to(head.dtype)) for project in policy.projectors])
    shape = (config.repeated_diffusion_steps, config.action_horizon, config.action_dim)
    actions, noise, time = (torch.empty(n, device="meta") for n in ((1, *shape[1:]), shape, shape[:1]))
    head.loss(conditioning, ActionTargets(actions, noise=noise, timestep=time))
