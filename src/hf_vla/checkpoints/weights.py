"""Opening files of weights safely: memory-mapped, nothing but tensors unpickled, one clear error if a file is broken."""

import contextlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors` or `.pt` file, memory-mapped; nothing but tensors is unpickled."""
    with readable_weights(file):
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("torch.save did not write it")
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise OSError(f"{file} is not a state dict: it must hold tensors by name and nothing else")
    return tensors


@contextlib.contextmanager
def readable_weights(source) -> Iterator[None]:
    """Turn the errors of corrupt weights into one clear OSError that names them."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(
            f"the weights of {source} can't be read ({error}); the file is corrupt or incomplete, get it again"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "PytorchStreamReader" in text or "zip" in text or "mmap" in text or "storage" in text:
            raise OSError(
                f"the weights of {source} can't be read ({text.splitlines()[0]}); the file is corrupt or incomplete"
            ) from error
        raise


__all__ = ["load_tensors", "readable_weights"]
