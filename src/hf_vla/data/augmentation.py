"""`ImageAugmentation`: random crops and colours for training images, in the loader's workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ..utils.pillow import resize
from .checks import is_integer, is_number


@dataclass(frozen=True)
class ImageAugmentation:
    """Changes the images of one item at random; images of one camera at several times are changed alike.

    In this order: crop, resize, brightness, contrast, saturation, hue. Everything is off by default.

    Args:
        crop: smallest share, in (0, 1], of width and height that is kept, at a random place; the crop keeps the aspect
            ratio and is resized to the original size. 1 keeps all.
        size: (width, height) of the images that come out, both without and after a crop. None keeps the size.
        brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x]; x in [0, 1].
        hue: shift as a share of the colour circle, drawn from [-x, x]; x in [0, 0.5].
        cameras: positions of the cameras whose images are changed; None for all. All are resized.

    Raises:
        ValueError: a number out of its range.
    """

    crop: float = 1.0
    size: tuple[int, int] | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cameras: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not is_number(self.crop) or not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1], got {self.crop!r}")
        for name, limit in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= limit:
                raise ValueError(f"{name} must be in [0, {limit}], got {value!r}")
        if self.size is not None and not (_are_integers(self.size, 1) and len(self.size) == 2):
            raise ValueError(f"size must be (width, height), got {self.size!r}")
        if self.cameras is not None and not _are_integers(self.cameras, 0):
            raise ValueError(
                f"cameras must be the positions of cameras, such as [0] for the first, got {self.cameras!r}"
            )

    def __call__(
        self, images: Sequence[Image.Image], generator: np.random.Generator, num_cameras: int
    ) -> list[Image.Image]:
        """Return the changed images.

        Args:
            images: of `num_cameras` cameras, then again of these at the next time, and so on.
            generator: makes all random numbers; equal generators give equal images.
        """
        draws = generator.uniform(size=(max(1, num_cameras), 7))
        return [self._change(image, index % num_cameras, draws) for index, image in enumerate(images)]

    def _change(self, image: Image.Image, camera: int, draws: np.ndarray) -> Image.Image:
        size = image.size if self.size is None else tuple(self.size)
        if self.cameras is not None and camera not in self.cameras:
            return image if image.size == size else resize(image, size)
        share, x, y, *factors, hue = draws[camera]
        if self.crop < 1:
            scale = 1 - share * (1 - self.crop)
            width, height = scale * image.width, scale * image.height
            left, top = x * (image.width - width), y * (image.height - height)
            image = resize(image, size, box=(left, top, left + width, top + height))
        elif image.size != size:
            image = resize(image, size)
        changes = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        )
        for (enhance, strength), factor in zip(changes, factors, strict=True):
            if strength:
                image = enhance(image).enhance(1 + strength * (2 * factor - 1))
        if self.hue:
            channels = np.array(image.convert("HSV"))
            channels[..., 0] += np.uint8(round(self.hue * (2 * hue - 1) * 256) % 256)
            image = Image.fromarray(channels, mode="HSV").convert("RGB")
        return image


def _are_integers(values: Any, least: int) -> bool:
    return isinstance(values, (list, tuple)) and all(is_integer(value, least) for value in values)
