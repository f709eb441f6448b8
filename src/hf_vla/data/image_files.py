"""Image files, and images stored in tables, as RGB images; whatever is wrong with one is an `OSError`."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image


def read_image(source: str | Path | BinaryIO) -> Image.Image:
    """Read the image in a file, RGB.

    Raises:
        OSError: it is missing, damaged or not an image, has more pixels than Pillow's limit, or values of more than eight bits,
            of which RGB would keep a part only.
    """
    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise OSError(f"its pixels are of mode {image.mode!r}, more than eight bits; convert it to 8-bit RGB")
            return image.convert("RGB")
    except Image.UnidentifiedImageError as error:
        # Pillow's message names the file, or the stream's address if the image is stored in a table.
        raise OSError("it is not an image, or is damaged") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"it is too large ({error}); save it smaller") from error
    except (SyntaxError, ValueError) as error:  # how some of Pillow's decoders report damage
        raise OSError(f"it is damaged ({error})") from error
