"""Pixels that depend neither on whether torchvision is installed nor on the version of Pillow.

transformers has two backends of each image processor, and takes the one for which the library is there. What StarVLA trained
with, torchvision's, is computed here by torch; of other families' processors the backend for Pillow is called.
"""

import functools

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..utils.pillow import resize

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
    side, sizes = image_processor.patch_size, {}
    pixels = [_resized(image_processor, image, sizes) for image in images]
    grids = [(height // side, width // side) for height, width, _ in (image.shape for image in pixels)]
    patches = np.empty((sum(rows * columns for rows, columns in grids), 3 * side * side), np.uint8)
    start = 0
    for image, (rows, columns) in zip(pixels, grids, strict=True):
        _write_patches(image_processor, image, patches[start : (start := start + rows * columns)])
    return {
        "pixel_values": _normalised(image_processor, torch.from_numpy(patches)),
        "image_grid_thw": torch.tensor([[1, *grid] for grid in grids]),
    }


def _normalised(image_processor, patches: torch.Tensor) -> torch.Tensor:
    """Normalise patches and repeat them along time: uint8 (N, 3 · side²) -> float32 (N, 3 · frames · side²)."""
    number, frames, area = len(patches), image_processor.temporal_patch_size, image_processor.patch_size**2
    shift, factor = _normalisation(image_processor)
    normalised = _new((number, 3, frames, area), np.float32)
    # A few at a time, while they are in the processor's cache
    for part, own in zip(patches.view(number, 3, 1, area).split(_AT_ONCE), normalised.split(_AT_ONCE), strict=True):
        own.copy_((part - shift).div_(factor))
    return normalised.flatten(1)


_AT_ONCE = 128


def _new(shape: tuple[int, ...], dtype) -> torch.Tensor:
    """Not initialised; in huge pages if it is large, unlike torch.empty: touching new memory costs more than the arithmetic."""
    return torch.from_numpy(np.empty(shape, dtype))


def _resized(image_processor, image: Image.Image, sizes: dict) -> np.ndarray:
    """An image -> uint8 (height, width, 3), multiples of a token's side if the processor resizes; `sizes` remembers to which."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    size = (image.height, image.width)
    if image_processor.do_resize:
        if size not in sizes:
            sizes[size] = smart_resize(
                *size,
                factor=image_processor.patch_size * image_processor.merge_size,
                min_pixels=image_processor.size["shortest_edge"],
                max_pixels=image_processor.size["longest_edge"],
            )
        if sizes[size] != size:
            return resized_by_torch(image, sizes[size], image_processor.resample).permute(1, 2, 0).numpy()
    return np.asarray(image)


def resized_by_torch(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """An RGB image -> uint8 (3, height, width) of `size` = (height, width), by torchvision's arithmetic"""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if size == pixels.shape[1:]:
        return pixels
    # What torchvision calls; on 8-bit pixels, so that the result is rounded to them.
    return nn.functional.interpolate(pixels[None], size, mode=_MODES[resample], antialias=True)[0]


def pillow_backend(image_processor):
    """Return the backend for Pillow of an image processor, with its settings; it resizes as Pillow 12 does.

    It is for one call: its class has no name by which it could be saved.
    """
    own_class = type(image_processor)
    if image_processor.backend != "pil":
        import transformers

        own_class = getattr(transformers, f"{own_class.__name__}Pil")
    backend = object.__new__(_resizing_as_pillow_12(own_class))
    vars(backend).update(vars(image_processor))
    return backend


@functools.cache
def _resizing_as_pillow_12(own_class: type) -> type:
    from transformers.image_processing_backends import PilBackend

    class ResizesAsPillow12(PilBackend):
        def resize(self, image, size, resample=None, **kwargs):
            if not (size.height and size.width) or image.dtype != np.uint8:
                return super().resize(image, size, resample, **kwargs)
            whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            filter_ = Image.Resampling.BILINEAR if resample is None else resample
            return np.array(resize(whole, (size.width, size.height), filter_)).transpose(2, 0, 1)

    # Between the processor's own class and `PilBackend`, whose `resize` the former calls.
    return type(own_class.__name__, (own_class, ResizesAsPillow12), {})


def _normalisation(image_processor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted from pixels of 0 to 255, and what they are divided by: (3, 1, 1) each"""
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    if not image_processor.do_normalize:
        return torch.zeros(3, 1, 1), torch.full((3, 1, 1), 1 / scale)
    # mean and deviation in the units of the pixels, as torchvision's backend fuses them
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (image_processor.image_mean, image_processor.image_std))
    return mean / scale, std / scale


def _write_patches(image_processor, pixels: np.ndarray, patches: np.ndarray) -> None:
    """uint8 (height, width, 3) -> uint8 patches (rows · columns, 3 · side²), a token's patches side by side"""
    side, merge = image_processor.patch_size, image_processor.merge_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    split = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    patches.reshape(split.shape)[...] = split  # by NumPy, which is faster at it than torch


__all__ = ["pillow_backend", "qwen_vl_pixels", "resized_by_torch"]
