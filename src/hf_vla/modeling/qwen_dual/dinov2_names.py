"""DINOv2's tensors: Meta's names, which StarVLA's checkpoints use, <-> transformers'.

Meta fuses queries, keys and values (and the two halves of SwiGLU) into one matrix; these are split, or joined again.
"""

import torch

#: Meta's name -> transformers', outside of blocks or, if it begins with a dot, inside of one
_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    ".attn.proj.": ".attention.o_proj.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
    ".mlp.w3.": ".mlp.down_proj.",
}
#: Meta's fused tensors -> transformers', in the order in which they are stacked
_FUSED = {
    ".attn.qkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."),
    ".mlp.w12.": (".mlp.gate_proj.", ".mlp.up_proj."),
}
_BLOCKS = ("blocks.", "encoder.layer.")


def from_meta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Meta's names -> transformers'."""
    result = {}
    for name, tensor in tensors.items():
        fused = next((fused for fused in _FUSED if fused in name), None)
        if fused is None:
            result[_rename(name, to_meta=False)] = tensor
            continue
        for part, piece in zip(_FUSED[fused], tensor.chunk(len(_FUSED[fused])), strict=True):
            # Cloned so that each tensor has its own memory: safetensors refuses to save views of one tensor.
            result[_rename(name.replace(fused, part), to_meta=False)] = piece.clone()
    return result


def to_meta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names -> Meta's."""
    result = {}
    for name, tensor in tensors.items():
        fused = next((fused for fused, parts in _FUSED.items() if any(part in name for part in parts)), None)
        if fused is None:
            result[_rename(name, to_meta=True)] = tensor
        elif _FUSED[fused][0] in name:  # the others are joined to the first
            pieces = [tensors[name.replace(_FUSED[fused][0], part)] for part in _FUSED[fused]]
            result[_rename(name.replace(_FUSED[fused][0], fused), to_meta=True)] = torch.cat(pieces)
    return result


def _rename(name: str, to_meta: bool) -> str:
    blocks = _BLOCKS[to_meta]
    in_block = name.startswith(blocks)
    if in_block:
        name = _BLOCKS[not to_meta] + name.removeprefix(blocks)
    for meta, ours in _NAMES.items():
        old, new = (ours, meta) if to_meta else (meta, ours)
        if in_block and meta.startswith(".") and old in name:
            return name.replace(old, new)
        if not in_block and not meta.startswith(".") and name.startswith(old):
            return new + name.removeprefix(old)
    return name


__all__ = ["from_meta", "to_meta"]
