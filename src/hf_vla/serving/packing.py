"""msgpack with numpy arrays, as StarVLA's and openpi's clients and servers pack them.

An array is a map of the bytes keys `__ndarray__` (true), `data`, `dtype` and `shape`; a scalar one of `__npgeneric__` (true), `data`
and `dtype`. Nothing that is unpacked can run code.
"""

from typing import Any

import msgpack
import numpy as np


class _BadArray(ValueError):
    pass


# Elements of a list or map. Images and chunks are arrays; millions of loose numbers would hold everybody up.
_MOST = 100_000
_KINDS = "biuf"  # booleans, integers, floats: neither objects nor records


def pack(value: Any) -> bytes:
    """`value` (maps, lists, text, numbers, arrays of numbers) as bytes.

    Raises:
        TypeError: something else in it.
    """
    return msgpack.packb(value, default=_encoded)


def unpack(message: bytes) -> Any:
    """What was packed.

    Raises:
        ValueError: no msgpack, or an array that contradicts itself or is not of numbers.
    """
    try:
        return msgpack.unpackb(message, object_hook=_decoded, max_array_len=_MOST, max_map_len=_MOST)
    except _BadArray:
        raise
    except Exception as error:  # msgpack's own errors have no common class but this
        raise ValueError(
            f"a message of {len(message)} bytes is no msgpack: {error or type(error).__name__}"
        ) from error


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    what = f"array of {value.dtype}" if isinstance(value, np.ndarray | np.generic) else type(value).__name__
    raise TypeError(f"a {what} can't be sent; maps, lists, text, numbers and arrays of numbers can")


def _decoded(value: dict) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    try:
        dtype = np.dtype(value[b"dtype"])
        if dtype.kind not in _KINDS:
            raise ValueError(f"arrays of {dtype} are not taken")
        if b"__npgeneric__" in value:
            return dtype.type(value[b"data"])
        return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise _BadArray(f"an array in the message can't be read: {error}") from error


__all__ = ["pack", "unpack"]
