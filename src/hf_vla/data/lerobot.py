"""`LeRobotDataset`: frames, actions, state and instruction of LeRobot datasets v2.0, v2.1 and v3.0, exactly as stored."""

import copy
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from ..robots.action_modes import ActionMode
from ..robots.robot_types import Layout, RobotType, find_robot, known_robot
from ..utils.observations import is_blank
from ..utils.renamed import with_new_names
from .advantage_labels import ALL_POSITIVE, NEGATIVE, POSITIVE, AdvantageLabels
from .checks import integers
from .chunks import delta_dimensions, kept_within, make_window
from .columns import (
    DEPTH_MAP,
    ColumnMapping,
    RobotMismatch,
    column_mapping_hint,
    depth,
    dimension_names,
    dimensions,
    map_columns,
)
from .frame_times import USE_ANOTHER_RULE, checked_rule
from .hub import DatasetSource
from .lerobot_metadata import LeRobotMetadata, load_metadata
from .metadata_files import read_columns
from .present_files import only_metadata, present_part
from .statistics import compute_statistics, content_key, read_cached, write_cached
from .tables import FrameTable, ParquetImages, TableCache, first_rows, read_frame_table
from .video import VideoReaderCache

logger = logging.getLogger(__name__)


class LeRobotDataset(Dataset):
    """The frames of a LeRobot dataset, each with the action chunk that begins at it.

    `len` is the number of frames of the chosen episodes, item *i* the *i*-th frame in ascending episode order. An item
    is a dict in raw (robot) units:

    | key | value |
    |---|---|
    | `image` | list of RGB `PIL.Image`s, one per camera; with image history, all cameras of the first offset, then the next |
    | `lang` | the instruction, str |
    | `action` | (H, D) float32 array: the actions from this frame on; past the episode's end its last action again, or zeros if the action is a difference |
    | `action_mask` | (H,) bool array, False where the action is such padding |
    | `state` | (1, S) float32 array, with history (T, S); absent if the dataset has no state |
    | `dataset` | the key of the statistics that normalise this item, str |
    | `advantage` | only with `advantage`: "positive" or "negative" |
    | `image_mask`, `state_mask` | only with history: (number of images,) and (T,) bool arrays, False where the episode's first or last frame is repeated |

    Args:
        path_or_repo_id: a folder, or a dataset repository on the Hub, of which only the needed files are downloaded.
        action_horizon: H, the length of the action chunks, in frames. Default: the robot type's.
        cameras: which cameras, in which order: feature keys, the names that `meta/modality.json` or `columns` gives
            them, or the last part of the key. Default: those of `columns`, of `robot`, else all in the order of
            `meta/info.json`.
        episodes: indices of the episodes to read. Default: all.
        columns: which columns mean what, a YAML file or the dict that it would hold; see `hf_vla.data.columns`.
        robot: robot type, by name or as a YAML file, see `hf_vla.robots.robot_types`: its keys are the state and the action,
            in its order. Default: that of `meta/info.json`, if a robot type is called so and the dataset has its keys.
        unnorm_key: statistics key. Default: that of `robot`, else the robot type in `meta/info.json`, else the dataset's
            name. A key that is also the name of a robot type stands for both.
        delta_indices: offsets in frames from the item's own, under "action" (instead of `action_horizon`), "state" and
            "image", such as `{"image": [-10, 0]}`.
        action_mode: "stored"; or "delta" or "relative", made of stored absolute actions, see `hf_vla.robots.action_modes`;
            or an `ActionMode`. Default: the robot type's, else "stored".
        absolute_dims: action dimensions, such as the gripper's, that `action_mode` leaves as they are.
        timestamps: which frame of its video each row shows: "stored", "exact", "nearest" or "by_frame_index", see
            `hf_vla.data.frame_times`.
        on_missing: "raise"; or "skip": episodes of which a file is missing, or whose video would show another episode's frames by
            what `meta/` says, are left out, which is logged.
        advantage: tag of the labels that `hf-vla label` wrote beside the dataset; "positive" makes all frames positive.
        revision: branch, tag or commit of the Hub repository.
        frame_cache: a folder in which decoded frames are kept, so that each is decoded once, by whichever process or run
            comes first: raw RGB, 150 kB for 224 x 224 pixels. Images stored in tables are read from there all the same.
            Default: none, every frame is decoded each time.
        max_open_videos: video files kept open per process; members of a mixture share the largest of their limits.
        max_table_bytes: numbers kept in memory per process. If it is less than the dataset has, random access reads files
            again and again.

    Raises:
        FileNotFoundError: the dataset or a file of it is missing. If there is only `meta/`, that is a warning: what it describes
            can be listed.
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
        action_horizon: int | None = None,
        cameras: Iterable[str] | None = None,
        *,
        episodes: Iterable[int] | None = None,
        columns: str | Path | Mapping[str, Any] | None = None,
        robot: str | Path | RobotType | None = None,
        unnorm_key: str | None = None,
        delta_indices: Mapping[str, Iterable[int]] | None = None,
        action_mode: str | ActionMode | None = None,
        absolute_dims: Sequence[int] = (),
        timestamps: str = "stored",
        on_missing: str = "raise",
        advantage: str | None = None,
        revision: str | None = None,
        frame_cache: str | Path | None = None,
        max_open_videos: int = 256,
        max_table_bytes: int = 2**30,
        **old_names: Any,
    ) -> None:
        if old_names:
            if unknown := old_names.keys() - {"key"}:
                raise TypeError(f"LeRobotDataset has no argument {', '.join(sorted(unknown))}")
            given = old_names if unnorm_key is None else old_names | {"unnorm_key": unnorm_key}
            unnorm_key = with_new_names(given, {"key": "unnorm_key"}, "LeRobotDataset")["unnorm_key"]
        self.timestamps = checked_rule(timestamps)
        if on_missing not in ("raise", "skip"):
            raise ValueError(f"on_missing is {on_missing!r}; possible: 'raise', 'skip'")
        source = DatasetSource(path_or_repo_id, revision)
        metadata = load_metadata(source.root)
        self.name = source.name
        self.root = source.root
        self.revision = source.revision
        self.fps = metadata.info["fps"]
        recorded = metadata.info.get("robot_type")
        #: the robot type, or None
        self.robot = find_robot(robot) if robot is not None else None
        called = known_robot(unnorm_key or recorded) if robot is None else None
        self._cameras_of_robot = robot is not None and cameras is None
        reading = {"columns": columns, "cameras_of_robot": self._cameras_of_robot}
        try:
            if called is not None:
                self._mapping = self._map_columns(metadata, called, reading)
            else:
                self._mapping = map_columns(metadata.features, metadata.modality, robot=self.robot, **reading)
            self.action_dim = dimensions(self._mapping.action, metadata.features)
            self.state_dim = dimensions(self._mapping.state, metadata.features) or None
            self.action_names = dimension_names(self._mapping.action, metadata.features)
            self.state_names = dimension_names(self._mapping.state, metadata.features) if self._mapping.state else None
            if action_horizon is None and "action" not in (delta_indices or ()) and self.robot is not None:
                action_horizon = self.robot.action_horizon
            self._window = make_window(
                action_horizon,
                delta_indices,
                self._chosen_mode(action_mode, absolute_dims),
                action_dim=self.action_dim,
                state_dim=self.state_dim,
                delta_dims=delta_dimensions(self._mapping, metadata.features),
                action_names=self.action_names,
                state_names=self.state_names,
            )
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        #: key of the statistics that normalise the items
        self.unnorm_key = unnorm_key or (find_robot(robot).unnorm_key if robot else recorded) or Path(self.name).name
        self.action_horizon = len(self._window.action)
        self.cameras = self._choose_cameras(cameras, metadata.features)
        chosen = self._choose_episodes(episodes, metadata.episode_index)
        self.metadata = metadata.select(chosen, self.cameras)
        source.fetch(self.metadata.files(), metadata.files())
        if source.revision is not None:
            # Only the tables tell whether meta/ names the right ones for every episode, and now they are here.
            fetched, metadata = set(self.metadata.files()), load_metadata(source.root)
            self.metadata = metadata.select(chosen, self.cameras)
            if not fetched.issuperset(self.metadata.files()):
                source.fetch(self.metadata.files(), metadata.files())
        #: whether there are tables and videos, or `meta/` only
        self.has_files = True
        part = present_part(self.root, metadata, chosen, self.cameras, cameras is None, on_missing == "skip")
        if part is None:
            self.has_files = False
            logger.warning("%s: %s", self.name, only_metadata(self.metadata))
        else:
            chosen, self.cameras = part
            self.metadata = metadata.select(chosen, self.cameras)

        #: tag of the labels that say which frames were better than expected, or None
        self.advantage = advantage
        self._labels: AdvantageLabels | None = None
        if advantage not in (None, ALL_POSITIVE):
            self._labels = AdvantageLabels.read(self.root, advantage)
            lengths = zip(self.episode_indices, self.metadata.length.tolist(), strict=True)
            self._labels.check(self.name, dict(lengths))

        self._ends = np.cumsum(self.metadata.length)
        self._tables = TableCache(self._read_table, max_table_bytes)
        self.videos = VideoReaderCache(max_open_videos)
        self._stored_images = ParquetImages(self.root)
        #: whether all tables were read and nothing was wrong with them; see `hf_vla.data.preflight.readable_part`
        self.tables_are_sound = False
        self._frame_cache = None
        if frame_cache is not None and self.metadata.videos:
            # Late: xxhash comes with the extra [train] only.
            from .frame_cache import FrameCache

            shapes = [metadata.features[camera].get("shape") for camera in self.metadata.videos]
            frame_bytes = sum(math.prod(integers(f"{self.name}: shape in meta/info.json", shape)) for shape in shapes)
            self._frame_cache = FrameCache(frame_cache, self.root, frame_bytes * len(self))

    def _map_columns(self, metadata: LeRobotMetadata, robot: RobotType, reading: dict[str, Any]) -> ColumnMapping:
        """Map columns by the robot type that the key or `meta/info.json` names.

        It was not asked for by `robot`, so what does not fit, its state or all of it, is left out, which is logged.
        """
        for fitting in (robot, replace(robot, state=Layout())):
            try:
                mapping = map_columns(metadata.features, metadata.modality, robot=fitting, **reading)
            except RobotMismatch as error:
                logger.warning("%s is called %s, but does not fit that robot type: %s", self.name, robot.name, error)
            else:
                self.robot = fitting
                return mapping
        return map_columns(metadata.features, metadata.modality, **reading)

    def _chosen_mode(self, action_mode: str | ActionMode | None, absolute_dims: Sequence[int]) -> ActionMode:
        if isinstance(action_mode, ActionMode):
            return action_mode
        if action_mode is None and self.robot is not None and not absolute_dims:
            return self.robot.mode_of_actions(self.action_dim)
        return ActionMode(action_mode or "stored", absolute_dims)

    @property
    def key(self) -> str:
        """`unnorm_key`, by its old name."""
        warnings.warn("LeRobotDataset.key is now called unnorm_key", FutureWarning, stacklevel=2)
        return self.unnorm_key

    def with_episodes(self, episodes: Iterable[int]) -> "LeRobotDataset":
        """Return the same dataset with some of its episodes only, and their statistics.

        Raises:
            ValueError: no episode, one twice, or one that this dataset does not read.
        """
        other = copy.copy(self)
        other.__dict__.pop("statistics", None)
        other.metadata = self.metadata.select(
            self._choose_episodes(episodes, self.metadata.episode_index), self.cameras
        )
        other._ends = np.cumsum(other.metadata.length)
        return other

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, frame = self.locate(index)
        table, rows = self.episode_table(row)
        if (table.wrong_times or table.no_instruction) and (unfit := self.unfit(row)):
            raise ValueError(f"{self.name}: {unfit}")
        action, state = _of_episode(table, rows)
        chunk, mask = self._window.actions(action, state, frame)
        images, image_mask = kept_within(self._window.image, frame, len(action))
        item = {
            "image": [self._image(camera, row, rows.start + at, table) for at in images for camera in self.cameras],
            "lang": self._instruction(table, rows.start + frame),
            "action": chunk,
            "action_mask": mask,
            "dataset": self.unnorm_key,
        }
        if self.advantage is not None:
            labels = None if self._labels is None else self._labels.positive[int(self.metadata.episode_index[row])]
            item["advantage"] = POSITIVE if labels is None or labels[frame] else NEGATIVE
        if len(images) > 1:
            item["image_mask"] = np.repeat(image_mask, len(self.cameras))
        if state is not None:
            states, state_mask = kept_within(self._window.state, frame, len(state))
            item["state"] = state[states]
            if len(states) > 1:
                item["state_mask"] = np.array(state_mask)
        return item

    def __repr__(self) -> str:
        return (
            f"LeRobotDataset({self.name!r}, {self.num_episodes} episodes, {len(self)} frames, "
            f"cameras={self.cameras}, action_horizon={self.action_horizon}, unnorm_key={self.unnorm_key!r})"
        )

    @property
    def instructions(self) -> list[str]:
        """The instructions that rows can have, sorted: those of the tasks, or what is in the column of texts."""
        column = self._mapping.instruction
        if self._mapping.text is not None:
            return [self._mapping.text]
        if self.metadata.features.get(column, {}).get("dtype") != "string" or not self.has_files:
            return sorted(set(self.metadata.tasks.values()))
        tables = (read_columns(self.root / path, [column])[column] for path in self.metadata.data.paths)
        return sorted({text for table in tables for text in table.unique().to_pylist() if text is not None})

    def instruction_of(self, row: int) -> str:
        """Return the instruction of the first frame of the `row`-th chosen episode."""
        table, rows = self.episode_table(row)
        return self._instruction(table, rows.start)

    @property
    def num_episodes(self) -> int:
        return len(self.metadata.length)

    @property
    def episode_indices(self) -> list[int]:
        """The episodes that are read, ascending."""
        return self.metadata.episode_index.tolist()

    @property
    def action_mode(self) -> str:
        return self._window.action_mode.name

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Exact statistics of the chosen episodes, see `compute_statistics`; the first call reads every table.

        If actions are relative, they say so (`action_mode`, `absolute_dims`), for the code that un-normalises by them.

        They are cached in `.hf_vla/` beside the dataset, under a key of the tables' sizes and modification times and of
        how they are read.
        """
        window = self._window
        reading = [asdict(self._mapping) | {"cameras": None, "order": None}, self.episode_indices, self.action_mode]
        reading += [self.metadata.length.tolist(), list(self.metadata.tasks.items())]
        mode = window.action_mode
        reading += [mode.absolute_dims, len(window.action), *mode.state_dims] if mode.needs_state else []
        reading[0].pop("text")
        key = content_key(self.root, self.metadata.data.paths, reading)
        statistics = read_cached(self.root, key)
        if statistics is None:
            statistics = compute_statistics(self.rows(), len(self), self.num_episodes)
            write_cached(self.root, key, statistics)
        return statistics | mode.entries()

    @property
    def mode_of_actions(self) -> ActionMode:
        """The action mode, with the dimensions that it leaves alone."""
        return self._window.action_mode

    @property
    def num_whole_chunks(self) -> int:
        """How many frames have an action chunk that lies within its episode."""
        return int(self._whole_chunks.sum())

    @property
    def _whole_chunks(self) -> np.ndarray:
        first, last = min(self._window.action[0], 0), max(self._window.action[-1], 0)
        return np.maximum(self.metadata.length - (last - first), 0)

    def whole_chunks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the action chunks (T, D) at ascending positions among the `num_whole_chunks` that lie within their episodes."""
        ends = np.cumsum(self._whole_chunks)
        before = ends - self._whole_chunks
        for position, row in zip(positions, np.searchsorted(ends, positions, side="right").tolist(), strict=True):
            frame = int(position - before[row]) - min(self._window.action[0], 0)
            yield self._window.actions(*_of_episode(*self.episode_table(row)), frame)[0]

    def rows(self) -> dict[str, Any]:
        """Return by modality a function that yields the rows of which the statistics are made, in parts (N, D)."""
        rows = {"action": lambda: (part for a, s in self.iter_episodes() for part in self._window.rows(a, s))}
        if self.state_dim:
            rows["state"] = lambda: (state for _, state in self.iter_episodes())
        return rows

    def iter_episodes(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield each episode's stored actions (L, D) and states (L, S) or None."""
        progress = tqdm(range(self.num_episodes), desc=f"reading {self.name}", unit="episode", disable=None)
        for row in progress:
            yield _of_episode(*self.episode_table(row))

    @property
    def camera_names(self) -> list[set[str]]:
        """By camera, all names that it goes by: those of its feature, of `meta/modality.json`, of `columns` and of the robot type."""
        names = [{name for name, key in self._mapping.cameras.items() if key == camera} for camera in self.cameras]
        if self._cameras_of_robot and len(self.robot.cameras) == len(names):
            names = [known | {name} for known, name in zip(names, self.robot.cameras, strict=True)]
        return names

    @property
    def units(self) -> list[Any] | None:
        """The units that `meta/info.json` gives the columns of states and actions, or None if it gives none."""
        features = self.metadata.features
        given = [
            features[column].get("units", features[column].get("unit")) for column in self._mapping.numeric_columns
        ]
        return None if all(unit is None for unit in given) else list(map(str, given))

    @property
    def episode_lengths(self) -> np.ndarray:
        """The numbers of frames of the episodes that are read, int (num_episodes,)."""
        return self.metadata.length

    def locate(self, index: int) -> tuple[int, int]:
        """Return the position among the chosen episodes, and the frame in the episode, of item `index`."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"{self.name}: item {index} of a dataset of {size} frames")
        index %= size
        row = int(self._ends.searchsorted(index, side="right"))
        return row, index - int(self._ends[row] - self.metadata.length[row])

    def sample_id(self, index: int) -> dict[str, Any]:
        """Return where item `index` comes from: `dataset` (its name), `episode` and `frame`."""
        row, frame = self.locate(index)
        return {"dataset": self.name, "episode": int(self.metadata.episode_index[row]), "frame": frame}

    @property
    def identity(self) -> dict[str, Any]:
        """What the items are, for JSON, apart from the place of the dataset; `statistics` tell their values."""
        episodes = zip(self.episode_indices, self.metadata.length.tolist(), strict=True)
        mapping = asdict(self._mapping)
        if mapping["text"] is None:
            del mapping["text"]  # which older runs did not have
        reading = [mapping, dict(self.metadata.tasks), list(episodes)]
        reading += [] if self.timestamps == "stored" else [self.timestamps]
        if self.advantage is not None:
            reading.append(self.advantage if self._labels is None else self._labels.digest)
        return {
            "key": self.unnorm_key,
            "episodes": self.num_episodes,
            "frames": len(self),
            "cameras": list(self.cameras),
            "window": self._window.identity,
            "reading": hashlib.sha256(json.dumps(reading, default=str).encode()).hexdigest()[:16],
        }

    def write_card(self) -> None:
        """Write or renew the dataset's card, README.md in its folder; see `hf_vla.cards.dataset_card`."""
        from ..cards.dataset_card import write_dataset_card

        write_dataset_card(self.root, self.metadata.info, self.instructions)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **metadata: Any
    ) -> str:
        """Upload the dataset's folder, all of its episodes and cameras, with a card; see `hf_vla.cards.dataset_card`.

        Args:
            repo_id: the dataset repository, "user/name"; made if it is not there.
            private: whether a repository that is made here is private.
            token: of the Hub; by default the one that is logged in.
            metadata: fields of the card's metadata, such as `license="cc-by-4.0"`.

        Returns:
            The repository's address.

        Raises:
            OSError: the Hub refuses, or cannot be reached.
        """
        from ..cards.dataset_card import compose
        from ..cards.pushing import remote_card, upload

        existing = remote_card(repo_id, "dataset", token)
        if existing is None and (self.root / "README.md").is_file():
            existing = (self.root / "README.md").read_text(encoding="utf-8")
        card = compose(self.metadata.info, self.instructions, repo_id, existing, metadata)
        return upload(self.root, repo_id, card or existing, repo_type="dataset", private=private, token=token)

    def _choose_cameras(self, cameras: Iterable[str] | None, features: Mapping[str, Any]) -> list[str]:
        known = self._mapping.cameras
        if cameras is None:
            left_out = [
                key for key in features if key in known and key not in self._mapping.order and depth(features[key])
            ]
            if left_out:
                logger.warning("%s: depth is not read: %s", self.name, ", ".join(left_out))
            return self._without_deep_pixels(self._mapping.order, features)
        chosen = list(cameras) if isinstance(cameras, Iterable) and not isinstance(cameras, str) else [None]
        if not all(isinstance(camera, str) for camera in chosen):
            raise ValueError(f"{self.name}: cameras must be a list of names, got {cameras!r}")
        unknown = [camera for camera in chosen if camera not in known]
        if unknown:
            raise ValueError(f"{self.name}: unknown camera {unknown[0]!r}; there are {', '.join(known) or 'none'}")
        return self._without_deep_pixels([known[camera] for camera in chosen], features)

    def _without_deep_pixels(self, cameras: Iterable[str], features: Mapping[str, Any]) -> list[str]:
        """Return the cameras.

        Raises:
            ValueError: one of them has grey levels of more than 8 bits, of which an RGB image would keep a part only.
        """
        for camera in cameras:
            if (reason := depth(features[camera])) and reason != DEPTH_MAP:
                raise ValueError(
                    f"{self.name}: camera {camera!r} is not a picture: {reason}, of which 8-bit RGB would keep 256 levels; leave "
                    "it out of the cameras, or write it again as 8-bit images by a rule of your own"
                )
        return list(cameras)

    def _choose_episodes(self, episodes: Iterable[int] | None, existing: np.ndarray) -> np.ndarray:
        if episodes is None:
            return np.arange(len(existing))
        chosen = integers(f"{self.name}: episodes", episodes)
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

    def episode_table(self, row: int) -> tuple[FrameTable, slice]:
        """Return the table that holds the `row`-th chosen episode, and its rows there."""
        file = self.metadata.data.path(row)
        table, episode = self._tables[file], int(self.metadata.episode_index[row])
        rows = table.rows.get(episode, slice(0, 0))
        if rows.stop - rows.start != self.metadata.length[row]:
            raise ValueError(
                f"{self.name}: episode {episode} has {rows.stop - rows.start} rows in {self.root / file}, "
                f"but {self.metadata.length[row]} frames according to meta/"
            )
        if table.faults and episode in table.faults:
            raise ValueError(f"{self.root / file}: episode {episode}{table.faults[episode]}")
        return table, rows

    def unfit(self, row: int) -> str | None:
        """Return why items of the `row`-th chosen episode cannot be trained on though its numbers are sound, or None.

        Its timestamps are of other frames than its rows', or it has no instruction. Statistics can be made of it.
        """
        table, episode = self._tables[self.metadata.data.path(row)], int(self.metadata.episode_index[row])
        if episode in table.wrong_times:
            wrong = table.wrong_times[episode]
            return f"episode {episode}: {wrong}, and so on for {wrong.rows} frames. {USE_ANOTHER_RULE}"
        if episode in table.no_instruction:
            return f"episode {episode}, frame {table.no_instruction[episode]}: {self._no_instruction(table)}"
        return None

    def _no_instruction(self, table: FrameTable) -> str:
        """Return why rows of a table have no instruction, and what helps."""
        what = (
            f"column {self._mapping.instruction!r} is missing"
            if table.instruction is None
            else "the instruction is empty"
        )
        features = self.metadata.features
        texts = [key for key, feature in features.items() if feature["dtype"] == "string"]
        hint = column_mapping_hint(features, texts[0] if texts else "{text: what the robot does}")
        return f"{what}, and a policy needs one. {hint}"

    def _read_table(self, file: str) -> FrameTable:
        path = self.root / file
        table = read_frame_table(path, self._mapping, self.timestamps, self.fps, bool(self.metadata.videos))
        for name, values, expected in (
            ("action", table.action, self.action_dim),
            ("state", table.state, self.state_dim),
        ):
            if values is not None and values.shape[1] != expected:
                raise ValueError(f"{path}: {name} has {values.shape[1]} dimensions, meta/ says {expected}")
        self._look_for_instructions(table)
        return table

    def _look_for_instructions(self, table: FrameTable) -> None:
        """Add to the table which of its episodes lack an instruction, or name a task that does not exist."""
        if self._mapping.text is not None or (table.instruction is None and self._only_task is not None):
            return
        if table.instruction is None:
            table.no_instruction |= dict.fromkeys(table.rows, 0)
        elif table.instruction.dtype.kind == "i":
            unknown = ~np.isin(table.instruction, list(self.metadata.tasks))
            for episode, frame in first_rows(unknown, table.rows).items():
                index = table.instruction[table.rows[episode].start + frame]
                table.faults.setdefault(
                    episode,
                    f", frame {frame}: {self._mapping.instruction} {index} is not among the {len(self.metadata.tasks)} tasks of "
                    "meta/",
                )
            empty = [index for index, text in self.metadata.tasks.items() if is_blank(text)]
            if empty:
                table.no_instruction |= first_rows(np.isin(table.instruction, empty), table.rows)

    @property
    def _only_task(self) -> str | None:
        """The instruction of all rows, if they don't say and there is one only."""
        texts = sorted(set(self.metadata.tasks.values()))
        return self._mapping.text or (texts[0] if len(texts) == 1 and not is_blank(texts[0]) else None)

    def _instruction(self, table: FrameTable, row: int) -> str:
        if table.instruction is None:
            return self._only_task
        value = table.instruction[row]
        return value if isinstance(value, str) else self.metadata.tasks[value]

    def _max_pixels(self, camera: str) -> int | None:
        """Return how many pixels a picture of this camera may have: what a file says of itself can ask for any memory.

        Metadata are wrong often enough by a factor of two in width and height.
        """
        shape = self.metadata.features[camera].get("shape")
        try:
            sides = sorted(integers("shape", shape))[-2:]  # height and width, without the channels
        except ValueError:
            return None
        return 4 * math.prod(sides) if len(sides) == 2 and sides[0] > 0 else None

    def _image(self, camera: str, row: int, table_row: int, table: FrameTable) -> Image.Image:
        try:
            if camera not in self.metadata.videos:
                file = self.root / self.metadata.data.path(row)
                return self._stored_images.read(file, table_row, camera, self._max_pixels(camera))
            video = self.metadata.videos[camera].path(row)
            time = table.timestamp[table_row]
            # Half a frame further the next episode begins. Files that are an episode's own say where they end.
            last = max(self.metadata.video_seconds[camera][row], self.metadata.length[row] / self.fps) - 0.5 / self.fps
            if not -0.5 / self.fps <= time <= last:
                raise OSError(f"{time:.6g} s is outside of the episode's {last + 0.5 / self.fps:.6g} s of video")
            timestamp = float(self.metadata.video_start[camera][row] + time)
            most = self._max_pixels(camera)
            decode = partial(self.videos.frame_at, f"{self.root}/{video}", timestamp, self.fps, max_pixels=most)
            if self._frame_cache is None:
                return decode()
            return self._frame_cache.frame_at(video, timestamp, self.fps, decode)
        except OSError as error:
            episode = int(self.metadata.episode_index[row])
            frame = table_row - table.rows[episode].start
            raise OSError(f"{self.name}: episode {episode}, frame {frame}, camera {camera!r}: {error}") from error


def _of_episode(table: FrameTable, rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
    return table.action[rows], None if table.state is None else table.state[rows]
