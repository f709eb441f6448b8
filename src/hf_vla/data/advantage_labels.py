"""The files beside a LeRobot dataset that say which of its frames were better than expected.

meta/returns_TAG.parquet      episode_index, frame_index, return, value
meta/advantages_TAG.parquet   episode_index, frame_index, advantage, positive, source
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.files import atomic_write
from ..utils.suggestions import did_you_mean
from .metadata_files import read_columns, to_booleans, to_numbers

#: Reserved: in place of a tag, it marks every frame positive, without labels.
ALL_POSITIVE = "positive"
POSITIVE, NEGATIVE = "positive", "negative"
_RETURNS, _ADVANTAGES = "returns", "advantages"
_ABOUT = b"hf_vla"


def check_tag(tag: str) -> None:
    """Raise a ValueError unless `tag` can be part of a file name and is not the reserved word."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", tag) or tag == ALL_POSITIVE:
        raise ValueError(
            f"{tag!r} can't be a tag; give letters, digits, _, - and ., other than {ALL_POSITIVE!r}, which stands for all frames"
        )


def read_returns(root: Path, tag: str) -> dict[str, np.ndarray]:
    """Return the columns of `meta/returns_TAG.parquet`."""
    return {name: column.to_numpy() for name, column in _table(root, _RETURNS, tag).items()}


@dataclass(frozen=True)
class AdvantageLabels:
    """Which frames of a dataset are better than expected.

    Attributes:
        tag: under which they are kept.
        positive: by episode, booleans (L,).
        about: how they came about: the policy, the thresholds, the settings.
    """

    tag: str
    positive: Mapping[int, np.ndarray]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path, tag: str) -> "AdvantageLabels":
        """Read the labels of a dataset's folder.

        Raises:
            ValueError: there are none of that tag, or the file is damaged.
        """
        table = _table(root, _ADVANTAGES, tag)
        path = _path(root, _ADVANTAGES, tag)
        positive = to_booleans(table["positive"], "positive", path)
        return cls(tag, _by_episode(path, table, positive), _about(path))

    def check(self, name: str, lengths: Mapping[int, int]) -> None:
        """Check that every frame of these episodes, {index: frames}, has a label.

        Raises:
            ValueError: one has none, for example because episodes were added since.
        """
        for episode, length in lengths.items():
            found = len(self.positive.get(episode, ()))
            if found != length:
                raise ValueError(
                    f"{name}: episode {episode} has {length} frames and {found} labels of the tag {self.tag!r}; label the "
                    "dataset again (hf-vla label --overwrite)"
                )

    @property
    def digest(self) -> str:
        """A short text that tells these labels from others."""
        digest = hashlib.sha256()
        for episode in sorted(self.positive):
            digest.update(f"{episode} ".encode() + np.packbits(self.positive[episode]).tobytes())
        return digest.hexdigest()[:16]


def write_labels(
    root: Path, tag: str, columns: Mapping[str, np.ndarray], about: Mapping[str, Any], overwrite: bool = False
) -> list[Path]:
    """Write returns and advantages of all frames beside a dataset, whose own files stay as they are.

    Args:
        root: the dataset's folder.
        columns: `episode_index`, `frame_index`, `return`, `value`, `advantage`, `positive`, `source`, (N,) each.
        about: for JSON.
        overwrite: replace labels of the same tag.

    Returns:
        the two files.

    Raises:
        FileExistsError: there are labels of that tag.
    """
    check_tag(tag)
    paths = [_path(root, name, tag) for name in (_RETURNS, _ADVANTAGES)]
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise FileExistsError(f"{there[0]} is there already; choose another tag, or replace it (overwrite)")
    of_returns = {"return": pa.float32(), "value": pa.float32()}
    of_advantages = {"advantage": pa.float32(), "positive": pa.bool_(), "source": pa.string()}
    for path, kinds in zip(paths, (of_returns, of_advantages), strict=True):
        kinds = {"episode_index": pa.int64(), "frame_index": pa.int64(), **kinds}
        table = pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()})
        table = table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with atomic_write(path) as partial:
            pq.write_table(table, partial)
    return paths


def tags(root: Path) -> list[str]:
    """Return the tags of the labels beside a dataset."""
    prefix = f"{_ADVANTAGES}_"
    return sorted(path.stem.removeprefix(prefix) for path in (Path(root) / "meta").glob(f"{prefix}*.parquet"))


def _path(root: Path, name: str, tag: str) -> Path:
    return Path(root) / "meta" / f"{name}_{tag}.parquet"


def _table(root: Path, name: str, tag: str) -> dict[str, pa.ChunkedArray]:
    path = _path(root, name, tag)
    if not path.exists():
        known = tags(root)
        raise ValueError(
            f"{root} has no advantages of the tag {tag!r}{did_you_mean(tag, known)}; there are "
            f"{', '.join(known) or 'none'}. hf-vla label {root} --model POLICY --tag {tag} computes them"
        )
    own = ["return", "value"] if name == _RETURNS else ["advantage", "positive", "source"]
    table = read_columns(path, ["episode_index", "frame_index", *own])
    return {column: table[column] for column in table.column_names}


def _about(path: Path) -> dict[str, Any]:
    return json.loads((pq.read_schema(path).metadata or {}).get(_ABOUT, b"{}"))


def _by_episode(path: Path, table: Mapping[str, pa.ChunkedArray], values: np.ndarray) -> dict[int, np.ndarray]:
    episode, frame = (to_numbers(table[name], name, np.int64, path) for name in ("episode_index", "frame_index"))
    order, found = np.lexsort((frame, episode)), {}
    indices, first = np.unique(episode[order], return_index=True)
    for index, rows in zip(indices.tolist(), np.split(order, first)[1:], strict=True):
        if not np.array_equal(frame[rows], np.arange(len(rows))):
            raise ValueError(f"{path}: the frames of episode {index} are not 0 to {len(rows) - 1}, each once")
        found[index] = values[rows]
    return found


__all__ = [
    "ALL_POSITIVE",
    "NEGATIVE",
    "POSITIVE",
    "AdvantageLabels",
    "check_tag",
    "read_returns",
    "tags",
    "write_labels",
]
