"""Which columns of the tables are the state, the action and the instruction, and which features are cameras.

`meta/modality.json` (GR00T's and StarVLA's) decides where it exists: the state is the concatenation of its `state`
entries in the file's order, each the slice `[start, end)` of a column; likewise the action. `video` gives cameras second
names, the first entry of `annotation` names the instruction's column. Without the file the LeRobot names hold:
`observation.state`, `action`, `task_index`.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slice:
    """Dimensions `[start, end)` of one column; `end` None means to its last."""

    column: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class ColumnMapping:
    """Slices that make up the state and the action, the instruction's column, cameras by every name they go by."""

    action: tuple[Slice, ...]
    state: tuple[Slice, ...]
    instruction: str
    cameras: dict[str, str]

    @property
    def numeric_columns(self) -> list[str]:
        return list(dict.fromkeys(part.column for part in (*self.action, *self.state)))


def map_columns(features: dict[str, dict[str, Any]], modality: dict[str, Any] | None) -> ColumnMapping:
    """Decide what the columns mean; see the module's docstring.

    Raises:
        ValueError: no action column, or `modality.json` names a column, slice or camera that does not exist.
    """
    image_keys = [key for key, feature in features.items() if feature["dtype"] in ("video", "image")]
    # A camera also answers to the last part of its key, as long as that is unambiguous.
    short = [key.rsplit(".", 1)[-1] for key in image_keys]
    cameras = {name: key for name, key in zip(short, image_keys, strict=True) if short.count(name) == 1}
    cameras |= {key: key for key in image_keys}
    if modality is None:
        if "action" not in features:
            raise ValueError(
                "no feature 'action' and no meta/modality.json that says which columns make it up; "
                f"the features are {', '.join(features)}"
            )
        state = (Slice("observation.state"),) if "observation.state" in features else ()
        return ColumnMapping((Slice("action"),), state, "task_index", cameras)

    for name, entry in modality.get("video", {}).items():
        key = entry.get("original_key", name)
        if key not in image_keys:
            raise ValueError(
                f"meta/modality.json: video {name!r} names {key!r}; the cameras are {', '.join(image_keys)}"
            )
        cameras[name] = key
    annotations = modality.get("annotation") or {"task": {"original_key": "task_index"}}
    name, entry = next(iter(annotations.items()))
    if len(annotations) > 1:
        logger.info("meta/modality.json has %d annotations; %r is the instruction", len(annotations), name)
    instruction = entry.get("original_key") or f"annotation.{name}"
    action = _slices("action", modality, features, default_column="action")
    if not action:
        raise ValueError("meta/modality.json has no action entries")
    state = _slices("state", modality, features, default_column="observation.state")
    return ColumnMapping(action, state, instruction, cameras)


def _slices(
    part: str, modality: dict[str, Any], features: dict[str, dict[str, Any]], default_column: str
) -> tuple[Slice, ...]:
    slices = []
    for name, entry in modality.get(part, {}).items():
        column = entry.get("original_key") or default_column
        if column not in features:
            raise ValueError(
                f"meta/modality.json: {part} {name!r} names column {column!r}; the features are {', '.join(features)}"
            )
        size, start, end = features[column]["shape"][-1], entry["start"], entry["end"]
        if not 0 <= start < end <= size:
            raise ValueError(
                f"meta/modality.json: {part} {name!r} is [{start}, {end}) of column {column!r}, which has {size} dimensions"
            )
        slices.append(Slice(column, start, end))
    return tuple(slices)


def dimensions(slices: tuple[Slice, ...], features: dict[str, dict[str, Any]]) -> int:
    """How many dimensions the concatenated slices have."""
    return sum((part.end or features[part.column]["shape"][-1]) - part.start for part in slices)


def dimension_names(slices: tuple[Slice, ...], features: dict[str, dict[str, Any]]) -> list[str] | None:
    """Names of the concatenated dimensions as `info.json` gives them, or None where it does not."""
    names: list[str] = []
    for part in slices:
        given = features[part.column].get("names")
        if isinstance(given, dict):  # {"motors": [...]} in older datasets
            given = [name for group in given.values() for name in group]
        if not given or len(given) != features[part.column]["shape"][-1]:
            return None
        names += given[part.start : part.end]
    return names


def to_matrix(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A numeric parquet column, of scalars or of vectors, as an (N, D) float32 array.

    Raises:
        ValueError: vectors of differing lengths, missing values, or no numbers at all.
    """
    rows, kind = len(column), column.type
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} empty cells")
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # pyarrow keeps several chunks, or none, in some versions
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.diff(values.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            row = int(np.flatnonzero(lengths != lengths[0])[0])
            raise ValueError(f"column {name!r} has {lengths[0]} values in row 0 and {lengths[row]} in row {row}")
        values = values.flatten()
    elif pa.types.is_fixed_size_list(kind):
        values = values.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"column {name!r} is of type {kind}; expected numbers or vectors of numbers")
    # A missing value inside a vector becomes NaN here, which the table's check then reports with its frame.
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(rows, -1)
