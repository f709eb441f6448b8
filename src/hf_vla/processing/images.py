"""Camera images: checking what a caller passes, converting it to RGB PIL images, and resizing."""

import numpy as np
from PIL import Image

from ..utils.pillow import resize

_HINT = "give PIL images or (height, width, 3) arrays, uint8 or float in [0, 1]"
#: Resampling and augmentation may overshoot [0, 1], but not these bounds; beyond them, other units are meant.
_FLOAT_BOUNDS = (-1.0, 2.0)


def to_pil(image, where: str) -> Image.Image:
    """Convert a PIL image or (height, width, 3) array, uint8 or float in [0, 1], to an RGB PIL image.

    Float arrays are clipped to [0, 1] and rounded to 8 bits; uint8 is left alone (StarVLA's semantics, section 3). Floats
    far outside of [0, 1], as of 0 to 255, are an error: clipped, they would be a white image.
    """
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise ValueError(f"{where} is an empty image of size {image.size}")
        return image if image.mode == "RGB" else image.convert("RGB")
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{where} is a {type(image).__name__}; {_HINT}")
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"{where} has shape {image.shape}; {_HINT}")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ValueError(f"{where} holds NaN or infinite pixels")
        if image.min() < _FLOAT_BOUNDS[0] or image.max() > _FLOAT_BOUNDS[1]:
            raise ValueError(
                f"{where} is {image.dtype} from {image.min():.4g} to {image.max():.4g}; floats are read as [0, 1]: give "
                "uint8 pixels, or divide by 255"
            )
        image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"{where} has dtype {image.dtype}; {_HINT}")
    return Image.fromarray(image)


def to_samples(images) -> list[list[Image.Image]]:
    """Convert what `processor(images=…)` accepts to samples of camera images.

    One image is one sample of one view, a list of images one sample of several views, a list of lists one sample each.
    """
    if isinstance(images, Image.Image | np.ndarray):
        images = [images]
    if not isinstance(images, list | tuple) or not len(images):
        raise ValueError(
            f"images is {type(images).__name__ if not isinstance(images, list | tuple) else 'empty'}; {_HINT}"
        )
    nested = [isinstance(x, list | tuple) for x in images]
    if not any(nested):
        images = [images]
    elif not all(nested):
        raise ValueError("images mixes single images and lists; give each sample its own list of camera images")
    for index, views in enumerate(images):
        if not len(views):
            raise ValueError(f"sample {index} has no camera image; each sample needs at least one")
    return [
        [to_pil(view, f"image {v} of sample {index}") for v, view in enumerate(views)]
        for index, views in enumerate(images)
    ]


def resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Resize `image` to `size` = (width, height), bicubic, aspect not kept; None leaves it as it is."""
    return image if size is None or image.size == tuple(size) else resize(image, tuple(size))
