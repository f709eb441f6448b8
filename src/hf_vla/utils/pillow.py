"""Pillow, with the same result under all of its versions."""

from PIL import Image


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resize to `size`, the aspect not kept.

    The width first, then the height, as Pillow up to version 12 does in one call. Pillow 13 begins with the height if that is
    cheaper, and rounds to other 8-bit values.

    Args:
        size: width and height in pixels.
        resample: the filter.
        box: left, top, right and bottom of the part to resize, in pixels; by default all of the image.
    """
    width, height = size
    left, top, right, bottom = box or (0, 0, *image.size)
    image = image.resize((width, image.height), resample, box=(left, 0, right, image.height))
    return image.resize((width, height), resample, box=(0, top, width, bottom))


__all__ = ["resize"]
