"""Reads JSON, JSON lines and columns of parquet files, and says what is wrong with them in one line."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.files import lfs_pointer

_WORDS = {int: "an integer", str: "a text"}


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or holds something other than an object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: is {path.parent.parent} the folder of a LeRobot dataset?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {lfs_pointer(path) or error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def read_json_lines(path: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """Read the objects of a JSON lines file.

    Args:
        fields: what every line must have, int or str.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object, or lacks one of `fields`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: a v2 dataset describes its episodes and tasks in JSON lines")
    try:
        numbered = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        lines = {number: json.loads(line) for number, line in numbered if line.strip()}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid JSON lines file: {lfs_pointer(path) or error}") from error
    for number, line in lines.items():
        for name, kind in fields.items():
            value = line.get(name) if isinstance(line, dict) else None
            if type(value) is not kind or (kind is int and abs(value) >= 2**63):
                raise ValueError(f"{path}, line {number}: {name!r} must be {_WORDS[kind]}, got {str(line)[:100]}")
    return list(lines.values())


def read_tasks(path: Path) -> dict[int, str]:
    """Read the instructions of a v3.0 dataset by their index.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, ValueError: it cannot be read, or is not a table of instructions.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: it holds the instructions")
    names = _open(path).schema_arrow.names
    # Written by pandas with the instruction as the index, whose column is called "task" or, unnamed, __index_level_0__.
    text = next((name for name in ("task", "__index_level_0__") if name in names), None)
    if text is None or "task_index" not in names:
        raise ValueError(f"{path}: expected the columns task and task_index, found {', '.join(names)}")
    instructions = read_columns(path, [text])[text]
    if instructions.null_count or not is_text(instructions):
        raise ValueError(f"{path}: column {text!r} must hold a text in every row, it is of type {instructions.type}")
    index = read_numbers(path, {"task_index": np.int64})["task_index"]
    return tasks_by_index(path, zip(index.tolist(), instructions.to_pylist(), strict=True))


def tasks_by_index(path: Path, tasks: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Return the instructions that the file `path` gives, by their index.

    Raises:
        ValueError: one index has two instructions.
    """
    by_index: dict[int, str] = {}
    for index, text in tasks:
        if by_index.setdefault(index, text) != text:
            raise ValueError(f"{path}: task_index {index} is of both {by_index[index]!r} and {text!r}")
    return by_index


def read_numbers(path: Path, columns: Mapping[str, type[np.number]]) -> dict[str, np.ndarray]:
    """Read columns of single numbers, as arrays (N,) of the given types.

    Raises:
        OSError, ValueError: as `read_columns` and `to_numbers`; NaN or infinity.
    """
    table = read_columns(path, list(columns))
    numbers = {name: to_numbers(table[name], name, kind, path) for name, kind in columns.items()}
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{path}: column {name!r} is {values[row]} in row {row}")
    return numbers


def to_numbers(column: pa.ChunkedArray, name: str, kind: type[np.number], path: Path) -> np.ndarray:
    """Return a parquet column of single numbers as an array (N,) of type `kind`.

    Raises:
        ValueError: an empty cell, or no numbers; integers are wanted and there are others.
    """
    whole = np.issubdtype(kind, np.integer)
    number = "an integer" if whole else "a number"
    if column.null_count:
        raise ValueError(f"{path}: column {name!r} must hold {number} in every row, but {empty_cells(column)}")
    values = column.to_numpy() if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) else None
    # pandas makes floating numbers of a column of integers that once had an empty cell.
    if values is None or (whole and values.dtype.kind == "f" and not (values == np.floor(values)).all()):
        raise ValueError(f"{path}: column {name!r} must hold {number} in every row; it is of type {column.type}")
    return values.astype(kind, copy=False)


def to_booleans(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """Return a parquet column of booleans or of the numbers 0 and 1, or of lists of one, as booleans (N,).

    Raises:
        ValueError: a cell is empty or anything else.
    """
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in column.to_pylist()]
    if wrong := [row for row, value in enumerate(values) if value not in (0, 1)]:
        raise ValueError(
            f"{path}: column {name!r} must be true or false in every row; {len(wrong)} of {len(values)} are not, the first is "
            f"{values[wrong[0]]!r} in row {wrong[0]}"
        )
    return np.array(values, dtype=bool)


def empty_cells(column: pa.ChunkedArray) -> str:
    """Say how many cells of a parquet column are empty, and where."""
    first = np.flatnonzero(column.is_null().to_numpy())[0]
    return f"{column.null_count} are empty, the first in row {first}"


def is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def read_columns(path: Path, columns: list[str], optional: Iterable[str] = ()) -> pa.Table:
    """Read some columns of one parquet file, memory-mapped and without threads (worker processes may have forked).

    Args:
        path: the file.
        columns: those that it must have.
        optional: those that are read too if it has them.

    Raises:
        OSError: the file is missing, truncated or no parquet file.
        ValueError: a column does not exist, or exists twice.
    """
    with _open(path) as file:
        existing = file.schema_arrow.names
        columns = list(dict.fromkeys([*columns, *(column for column in optional if column in existing)]))
        absent = [column for column in columns if column not in existing]
        if absent:
            raise ValueError(
                f"{path} has no column {', '.join(map(repr, absent))}; its columns are {', '.join(existing)}"
            )
        twice = [column for column in columns if existing.count(column) > 1]
        if twice:
            raise ValueError(f"{path} has more than one column {twice[0]!r}; its columns are {', '.join(existing)}")
        try:
            return file.read(columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error


def may_hold(path: Path, column: str, number: int) -> bool:
    """Return whether some row group's range of a column of integers, by the file's footer, has `number` in it.

    True if the footer does not say: the column is missing, has other types or no statistics.

    Raises:
        OSError: the file is truncated or no parquet file.
    """
    with _open(path) as file:
        names = [file.schema.column(position).path for position in range(len(file.schema))]
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    if column not in names:
        return True
    ranges = [group.column(names.index(column)).statistics for group in groups]
    if not all(known is not None and known.has_min_max and isinstance(known.min, int) for known in ranges):
        return True
    return any(known.min <= number <= known.max for known in ranges)


def _open(path: Path) -> pq.ParquetFile:
    try:
        # Checksums are verified if the file has them, as those of our writer have.
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OSError:
    if pointer := lfs_pointer(path):
        return OSError(f"{path} cannot be read: {pointer}")
    return OSError(f"{path} cannot be read as parquet ({error}); it may be truncated, download it again")
