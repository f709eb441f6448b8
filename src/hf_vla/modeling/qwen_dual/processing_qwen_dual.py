"""Processor of QwenDual: the state is a tensor for the action head, and each view is prepared for DINOv2 too."""

import numpy as np
import torch
from PIL import Image

from ...processing.processing_vla import VLAProcessor
from ...utils.pillow import resize
from .configuration_qwen_dual import QwenDualConfig

DINO_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dino_pixels(image: Image.Image) -> torch.Tensor:
    """Convert an RGB image to float32 (3, 224, 224): resized bilinearly (on 8-bit pixels), normalised by ImageNet's mean and std."""
    image = resize(image, (DINO_SIZE, DINO_SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


class QwenDualProcessor(VLAProcessor):
    """Processor of [`QwenDualForActionPrediction`]. The normalised state goes to the action head, beside the prompt.

    It adds `dino_pixel_values` (B, V, 3, 224, 224), from the images at `image_size`, and, if samples have different numbers of
    views, `dino_view_mask` (B, V), false where a sample has no view.
    """

    config_class = QwenDualConfig

    def _encode(self, images, prompts, actions):
        inputs = super()._encode(images, prompts, actions)
        counts = [len(views) for views in images]
        pixels = torch.zeros(len(images), max(counts), 3, DINO_SIZE, DINO_SIZE)
        for index, views in enumerate(images):
            pixels[index, : len(views)] = torch.stack([dino_pixels(view) for view in views])
        inputs["dino_pixel_values"] = pixels
        if len(set(counts)) > 1:
            inputs["dino_view_mask"] = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return inputs


__all__ = ["QwenDualProcessor"]
