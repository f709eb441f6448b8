"""Qwen-VL's patches: torchvision's numbers, with and without torchvision, under every version of Pillow.

StarVLA's checkpoints were trained with torchvision's image processors (StarVLA's semantics, section 3).
"""

import numpy as np
import torch
from PIL import Image
from torch import nn

#: PIL's filters that `torch.nn.functional.interpolate` has too, with its names for them
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def qwen_vl_pixels(image_processor, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """What Qwen-VL's image processors make of RGB images, by torchvision's arithmetic.

    Args:
        image_processor: a `Qwen2VLImageProcessor` of either backend, whose settings are followed. One that is set to resize with a
            filter that torch does not have is called instead.
        images: N images of any sizes.

    Returns:
        pixel_values: float32 (patches, 3 · temporal_patch_size · patch_size²), all images' patches in order, the patches of one
            token side by side.
        image_grid_thw: int64 (N, 3), each image's patches along time (1), height and width.
    """
    if image_processor.do_resize and image_processor.resample not in _MODES:
        return dict(image_processor(images=images, return_tensors="pt"))
    patches = [_patches(image_processor, _resized(image_processor, image)) for image in images]
    return {
        "pixel_values": torch.cat([values for values, _ in patches]),
        "image_grid_thw": torch.tensor([[1, *grid] for _, grid in patches]),
    }


def _resized(image_processor, image: Image.Image) -> torch.Tensor:
    """An image -> uint8 (3, height, width), multiples of a token's side if the processor resizes"""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not image_processor.do_resize:
        return pixels
    size = smart_resize(
        *pixels.shape[1:],
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    if size == pixels.shape[1:]:
        return pixels
    # What torchvision calls; on 8-bit pixels, so that the result is rounded to them.
    mode = _MODES[image_processor.resample]
    return nn.functional.interpolate(pixels[None], size, mode=mode, antialias=True)[0]


def _patches(image_processor, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """uint8 (3, height, width) -> float32 patches (rows · columns, channels), and (rows, columns)"""
    side, merge = image_processor.patch_size, image_processor.merge_size
    channels, rows, columns = len(pixels), pixels.shape[1] // side, pixels.shape[2] // side
    split = pixels.reshape(channels, rows // merge, merge, side, columns // merge, merge, side)
    patches = split.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, channels, 1, side * side).float()
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    if (
        image_processor.do_normalize
    ):  # mean and deviation in the units of the pixels, as torchvision's backend fuses them
        mean, std = (
            torch.tensor(x).view(channels, 1, 1) / scale
            for x in (image_processor.image_mean, image_processor.image_std)
        )
        patches = patches.sub_(mean).div_(std)
    elif scale != 1:
        patches = patches.mul_(scale)
    return patches.expand(-1, -1, image_processor.temporal_patch_size, -1).reshape(rows * columns, -1), (rows, columns)


__all__ = ["qwen_vl_pixels"]
