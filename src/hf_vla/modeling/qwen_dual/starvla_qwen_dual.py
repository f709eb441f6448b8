"""QwenDual in StarVLA's format: as QwenGR00T, and DINOv2 by Meta's name and under Meta's tensor names."""

from collections.abc import Mapping
from typing import Any

import torch

from ...checkpoints.starvla_mapping import first_given, lookup
from ..starvla_flow_matching import DiTMapping
from . import dinov2_names

#: Meta's name of a DINOv2 -> hidden_size, num_hidden_layers, num_attention_heads, use_swiglu_ffn
DINO_SIZES = {
    "dinov2_vits14": (384, 12, 6, False),
    "dinov2_vitb14": (768, 12, 12, False),
    "dinov2_vitl14": (1024, 24, 16, False),
    "dinov2_vitg14": (1536, 40, 24, True),
}
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "use_swiglu_ffn")


class QwenDualMapping(DiTMapping):
    """StarVLA's QwenDual."""

    names = ("QwenDual",)
    prefixes = {
        **DiTMapping.prefixes,
        "dino_encoder.body.": "dino.",
        "dino_encoder.": "dino.",
        "dino_pro.": "dino_projector.",
    }
    leaves = {"framework.dino.dino_backbone": (str | None, "a name")}

    def to_config(self, tree: dict) -> dict[str, Any]:
        name = first_given(lookup(tree, "framework.dino.dino_backbone"), "dinov2_vits14")
        if name not in DINO_SIZES:
            raise ValueError(f"framework.dino.dino_backbone is {name!r}; known are {', '.join(DINO_SIZES)}")
        dino = dict(zip(_FIELDS, DINO_SIZES[name], strict=True))
        return {**super().to_config(tree), "dino_config": {**dino, "image_size": 518, "patch_size": 14}}

    def to_yaml(self, config) -> dict[str, dict[str, Any]]:
        trees, dino = super().to_yaml(config), config.dino_config
        size = tuple(getattr(dino, name) for name in _FIELDS)
        name = next((name for name in DINO_SIZES if DINO_SIZES[name] == size), None)
        if name is None or (dino.image_size, dino.patch_size) != (518, 14):
            raise ValueError(
                f"StarVLA's format knows {', '.join(DINO_SIZES)} only; this policy's DINOv2 is none of them"
            )
        return trees | {"framework": {**trees["framework"], "dino": {"dino_backbone": name}}}

    def image_size(self, tree: dict) -> list[int] | None:
        return lookup(tree, "datasets.vla_data.obs_image_size", [224, 224])

    def convert(self, tensors: Mapping[str, torch.Tensor], to_starvla: bool) -> dict[str, torch.Tensor]:
        prefix = "dino." if to_starvla else "dino_encoder.body."
        dino = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        dino = dinov2_names.to_meta(dino) if to_starvla else dinov2_names.from_meta(dino)
        return super().convert(others | {prefix + name: tensor for name, tensor in dino.items()}, to_starvla)


MAPPING = QwenDualMapping()
