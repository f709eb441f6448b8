"""`LeRobotDataset`: frames, actions, state and instruction of LeRobot datasets v2.0, v2.1 and v3.0, exactly as stored."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from .columns import dimension_names, dimensions, map_columns
from .hub import DatasetSource
from .lerobot_metadata import check_files, load_metadata
from .statistics import compute_statistics, content_key, read_cached, write_cached
from .tables import FrameTable, ParquetImages, read_frame_table
from .video import VideoReaderCache


class LeRobotDataset(Dataset):
    """The frames of a LeRobot dataset, each with the action chunk that begins at it.

    `len` is the number of frames of the chosen episodes, item *i* the *i*-th frame in ascending episode order. An item
    is a dict in raw (robot) units:

    | key | value |
    |---|---|
    | `image` | list of RGB `PIL.Image`s, one per camera |
    | `lang` | the instruction, str |
    | `action` | (H, D) float32 array: the actions from this frame on; past the episode's end its last action again |
    | `action_mask` | (H,) bool array, False where the action is such a repetition |
    | `state` | (1, S) float32 array; absent when the dataset has no state |
    | `dataset` | the key of the statistics that normalise this item, str |

    Args:
        path_or_repo_id: a folder, or a dataset repository on the Hub, of which only the needed files are downloaded.
        action_horizon: H, the length of the action chunks, in frames.
        cameras: which cameras, in which order: feature keys, the names that `meta/modality.json` gives them, or the last
            part of the key. Default: all, in the order of `meta/info.json`.
        episodes: indices of the episodes to read. Default: all.
        key: statistics key. Default: the robot type in `meta/info.json`, else the dataset's name.
        revision: branch, tag or commit of the Hub repository.
        max_open_videos: video decoders kept open per process.

    Raises:
        FileNotFoundError: the dataset or a file of it is missing.
        OSError: a file is truncated or damaged, or a video has no frame at a timestamp.
        ValueError: bad arguments, an unknown codebase version, an empty dataset, or contradictory contents. What only
            the files' contents can show, such as NaN, is raised when they are first read: by `statistics` for all tables.

    Example:

    ```python
    >>> dataset = LeRobotDataset("datasets/my-robot", action_horizon=16, cameras=["front", "wrist"])  # doctest: +SKIP
    >>> dataset[0]["action"].shape  # doctest: +SKIP
    (16, 7)
    ```
    """

    def __init__(
        self,
        path_or_repo_id: str | Path,
        action_horizon: int,
        cameras: Iterable[str] | None = None,
        episodes: Iterable[int] | None = None,
        *,
        key: str | None = None,
        revision: str | None = None,
        max_open_videos: int = 32,
    ) -> None:
        if action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1, got {action_horizon}")
        source = DatasetSource(path_or_repo_id, revision)
        metadata = load_metadata(source.root)
        self.name = source.name
        self.root = source.root
        self.revision = source.revision
        self.action_horizon = action_horizon
        try:
            self._mapping = map_columns(metadata.features, metadata.modality)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.cameras = self._choose_cameras(cameras, metadata.features)
        self._metadata = metadata.select(self._choose_episodes(episodes, metadata.episode_index), self.cameras)
        source.fetch(self._metadata.files())
        check_files(self.root, self._metadata.files())

        self.key = key or metadata.info.get("robot_type") or Path(self.name).name
        self.fps = metadata.info["fps"]
        self.action_names = dimension_names(self._mapping.action, metadata.features)
        self.state_names = dimension_names(self._mapping.state, metadata.features) if self._mapping.state else None
        self._ends = np.cumsum(self._metadata.length)
        self._tables: dict[str, FrameTable] = {}
        self._videos = VideoReaderCache(max_open_videos)
        self._stored_images = ParquetImages(self.root)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, frame = self._locate(index)
        table, rows = self._episode_table(row)
        chunk = np.arange(frame, frame + self.action_horizon)
        length = rows.stop - rows.start
        item = {
            "image": [self._image(camera, row, rows.start + frame, table) for camera in self.cameras],
            "lang": self._instruction(table.instruction[rows.start + frame], row, frame),
            "action": table.action[rows.start + np.minimum(chunk, length - 1)],
            "action_mask": chunk < length,
            "dataset": self.key,
        }
        if table.state is not None:
            item["state"] = table.state[None, rows.start + frame].copy()
        return item

    def __getstate__(self) -> dict[str, Any]:
        # Tables, like open files, are read again by the process that needs them: sending them costs more.
        return self.__dict__ | {"_tables": {}}

    def __repr__(self) -> str:
        return (
            f"LeRobotDataset({self.name!r}, {self.num_episodes} episodes, {len(self)} frames, "
            f"cameras={self.cameras}, action_horizon={self.action_horizon}, key={self.key!r})"
        )

    @property
    def action_dim(self) -> int:
        """D, the number of dimensions of an action."""
        return dimensions(self._mapping.action, self._metadata.features)

    @property
    def state_dim(self) -> int | None:
        """S, the number of dimensions of a state; None when the dataset has no state."""
        return dimensions(self._mapping.state, self._metadata.features) or None

    @property
    def instructions(self) -> list[str]:
        """The instructions of the dataset's tasks, sorted."""
        return sorted(set(self._metadata.tasks.values()))

    @property
    def num_episodes(self) -> int:
        return len(self._metadata.length)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Exact statistics of the chosen episodes, see `compute_statistics`; reads every table on the first call.

        They are cached in `.hf_vla/` beside the dataset, under a key of the tables' sizes and modification times.
        """
        mapping = asdict(self._mapping)
        selection = [mapping["action"], mapping["state"], self._metadata.episode_index.tolist()]
        key = content_key(self.root, self._metadata.data.paths, selection)
        statistics = read_cached(self.root, key)
        if statistics is None:
            statistics = compute_statistics(*self.rows(), self.num_episodes)
            write_cached(self.root, key, statistics)
        return statistics

    def rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Actions (N, D) and states (N, S) or None of every frame, in item order."""
        episodes = tqdm(range(self.num_episodes), desc=f"reading tables of {self.name}", unit="episode", disable=None)
        tables = [self._episode_table(row) for row in episodes]
        action = np.concatenate([table.action[rows] for table, rows in tables])
        if not self._mapping.state:
            return action, None
        return action, np.concatenate([table.state[rows] for table, rows in tables])

    def _choose_cameras(self, cameras: Iterable[str] | None, features: dict[str, Any]) -> list[str]:
        known = self._mapping.cameras
        if cameras is None:
            return [key for key in features if key in known.values()]
        if isinstance(cameras, str):
            raise ValueError(f"{self.name}: cameras must be a list of names, got the string {cameras!r}")
        chosen = list(cameras)
        unknown = [camera for camera in chosen if camera not in known]
        if unknown:
            raise ValueError(f"{self.name}: unknown camera {unknown[0]!r}; there are {', '.join(known) or 'none'}")
        return [known[camera] for camera in chosen]

    def _choose_episodes(self, episodes: Iterable[int] | None, existing: np.ndarray) -> np.ndarray:
        if episodes is None:
            return np.arange(len(existing))
        chosen = list(episodes)
        if not chosen:
            raise ValueError(f"{self.name}: episodes is empty; leave it out to read all {len(existing)}")
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"{self.name}: episodes names some episode more than once: {chosen}")
        absent = sorted(set(chosen) - set(existing.tolist()))
        if absent:
            raise ValueError(
                f"{self.name}: episode {absent[0]} does not exist; there are {len(existing)}, "
                f"from {existing[0]} to {existing[-1]}"
            )
        return np.searchsorted(existing, sorted(chosen))

    def _locate(self, index: int) -> tuple[int, int]:
        """Episode row and frame in the episode of item `index`."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"{self.name}: item {index} of a dataset of {size} frames")
        index %= size
        row = int(np.searchsorted(self._ends, index, side="right"))
        return row, index - int(self._ends[row] - self._metadata.length[row])

    def _episode_table(self, row: int) -> tuple[FrameTable, slice]:
        file = self._metadata.data.path(row)
        if file not in self._tables:
            self._tables[file] = self._read_table(self.root / file)
        table, episode = self._tables[file], int(self._metadata.episode_index[row])
        rows = table.rows.get(episode, slice(0, 0))
        if rows.stop - rows.start != self._metadata.length[row]:
            raise ValueError(
                f"{self.name}: episode {episode} has {rows.stop - rows.start} rows in {self.root / file}, "
                f"but {self._metadata.length[row]} frames according to meta/"
            )
        return table, rows

    def _read_table(self, path: Path) -> FrameTable:
        table = read_frame_table(path, self._mapping)
        for name, values, expected in (
            ("action", table.action, self.action_dim),
            ("state", table.state, self.state_dim),
        ):
            if values is not None and values.shape[1] != expected:
                raise ValueError(f"{path}: {name} has {values.shape[1]} dimensions, meta/ says {expected}")
        return table

    def _instruction(self, value: Any, row: int, frame: int) -> str:
        if isinstance(value, str):
            return value
        if value not in self._metadata.tasks:
            raise ValueError(
                f"{self.name}: episode {self._metadata.episode_index[row]}, frame {frame}: "
                f"{self._mapping.instruction} {value} is not among the {len(self._metadata.tasks)} tasks of meta/"
            )
        return self._metadata.tasks[value]

    def _image(self, camera: str, row: int, table_row: int, table: FrameTable) -> Image.Image:
        data_file = self.root / self._metadata.data.path(row)
        try:
            if camera not in self._metadata.videos:
                return self._stored_images.read(data_file, table_row, camera)
            path = self.root / self._metadata.videos[camera].path(row)
            timestamp = float(self._metadata.video_start[camera][row] + table.timestamp[table_row])
            return Image.fromarray(self._videos.frame_at(path, timestamp, self.fps))
        except OSError as error:
            episode = int(self._metadata.episode_index[row])
            frame = table_row - table.rows[episode].start
            raise OSError(f"{self.name}: episode {episode}, frame {frame}, camera {camera!r}: {error}") from error
