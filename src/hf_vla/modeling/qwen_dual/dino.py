"""transformers' DINOv2 (Oquab et al. 2023) with the position embeddings of Meta's own code."""

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings


class MetaDinov2Embeddings(Dinov2Embeddings):
    """Interpolates position embeddings as Meta's `interpolate_pos_encoding` with its default `interpolate_offset` of 0.1.

    Meta calls `interpolate` with a scale factor that is 0.1 patches too large, transformers with a size: the grid is the same,
    but sampled at other points. StarVLA's checkpoints were trained with Meta's code.
    """

    offset = 0.1

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """embeddings (B, 1 + patches, D), image size in pixels -> position embeddings (1, 1 + patches, D)"""
        positions = self.position_embeddings
        side = int((positions.shape[1] - 1) ** 0.5)
        patch_height, patch_width = self.patch_embeddings.patch_size
        rows, columns = height // patch_height, width // patch_width
        if rows == columns == side:
            return positions
        grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        scale = ((rows + self.offset) / side, (columns + self.offset) / side)
        grid = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        patches = grid.to(positions.dtype).flatten(2).transpose(1, 2)
        return torch.cat([positions[:, :1], patches], dim=1)


class DinoEncoder(Dinov2Model):
    """A `Dinov2Model` with `MetaDinov2Embeddings`."""

    def __init__(self, config: Dinov2Config):
        super().__init__(config)
        self.embeddings = MetaDinov2Embeddings(config)
        self.post_init()

    def patch_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values (N, 3, height, width) -> patch tokens after the final norm (N, patches, hidden_size)"""
        return self(pixel_values.to(self.dtype)).last_hidden_state[:, 1:]


__all__ = ["DinoEncoder"]
