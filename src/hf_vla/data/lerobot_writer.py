"""Writing one's own demonstrations as a LeRobot dataset, format v3.0.

The layout is that of LeRobot 0.4 (`lerobot.datasets`): frames in `data/*.parquet`, many episodes to an mp4 in `videos/`,
and under `meta/` the schema (`info.json`), the statistics (`stats.json`), the instructions (`tasks.parquet`) and where
each episode lies (`episodes/*.parquet`).
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_vla.data.lerobot_features import (
    CHUNKS_SIZE,
    OWN_FEATURES,
    arrow_array,
    arrow_schema,
    checked_features,
    checked_value,
    file_indices,
    video_info,
    write_json,
)
from hf_vla.data.lerobot_statistics import EpisodeStatistics, ImageStatistics, vector_statistics
from hf_vla.data.video_writer import VideoWriter
from hf_vla.utils.observations import check_instruction

__all__ = ["LeRobotWriter", "remove_leftovers"]

_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_PATH = f"data/{_FILE}.parquet"
_VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
_EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
# What a writer writes into, beside the dataset.
_PARTIAL = ".{}.{}.partial"
_DATA_FILES_SIZE_IN_MB, _VIDEO_FILES_SIZE_IN_MB = 100, 200


class LeRobotWriter:
    """Writes episodes frame by frame into a new LeRobot v3.0 dataset.

    All is written into a temporary folder beside `root`, which is renamed to `root` by `finalize()`: a dataset is
    there whole or not at all. As a context manager it finalizes at the end, and removes what it wrote if the block
    raises.

    Args:
        root: the dataset's folder; it must not exist, or be empty.
        fps: frames per second.
        features: name → `{"dtype", "shape", "names"}` as in LeRobot. `dtype` "video" (shape (height, width, 3), even
            sizes) is stored as mp4; float32, float64, int*, uint8 and bool, shape (D,), go into the parquet files.
            LeRobot's names are "observation.images.NAME", "observation.state", "action", "next.success".
        robot_type: the embodiment's name.
        info: further entries of `info.json`, such as how the data came about.
        crf: x264's quality of the videos, lower is better.
        gop_size: key frame distance of the videos; 2 makes access to any frame fast.
        modality: contents of `meta/modality.json`, GR00T's and StarVLA's names of cameras, of parts of state and action, and
            of the instruction; by default there is no such file.

    Raises:
        ValueError: a feature or `fps` that the format does not take.
        FileExistsError: `root` exists and is not empty.

    Example:
        >>> features = {
        ...     "observation.images.front": {"dtype": "video", "shape": (96, 96, 3), "names": ["height", "width", "channels"]},
        ...     "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        ...     "action": {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "gripper"]},
        ... }
        >>> with LeRobotWriter("my-dataset", fps=20, features=features, robot_type="my-arm") as writer:
        ...     for image, state, action in episode:
        ...         writer.add_frame({"observation.images.front": image, "observation.state": state, "action": action})
        ...     writer.save_episode(task="open the drawer")
    """

    def __init__(
        self,
        root: str | Path,
        fps: int,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str | None = None,
        info: Mapping[str, Any] | None = None,
        crf: int = 18,
        gop_size: int = 2,
        modality: Mapping[str, Any] | None = None,
    ):
        self.root = Path(root)
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise FileExistsError(f"{self.root} exists and is not empty; choose another output or remove it")
        if isinstance(fps, bool) or not isinstance(fps, (int, np.integer)) or fps <= 0:
            raise ValueError(f"fps is {fps!r}; LeRobot takes a positive integer")
        self.fps = int(fps)
        self.features = checked_features(features)
        self.robot_type = robot_type
        self.extra_info = dict(info or {})
        self.modality = modality
        self._crf, self._gop_size = crf, gop_size
        self._video_keys = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        self._vector_keys = [key for key in self.features if key not in self._video_keys]
        self._schema = arrow_schema({**self.features, **OWN_FEATURES})

        self.num_episodes = self.num_frames = 0
        self._frames: list[dict[str, np.ndarray]] = []
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._about: Set[str] = set()
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._images = {key: ImageStatistics() for key in self._video_keys}
        self._data_file = -1
        self._data_writer: pq.ParquetWriter | None = None
        self._video_file = dict.fromkeys(self._video_keys, -1)
        self._video_writers: dict[str, VideoWriter] = {}

        self._partial: Path | None = self.root.parent / _PARTIAL.format(self.root.name, uuid.uuid4().hex[:8])
        self._partial.mkdir(parents=True)

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            if exception_type is None:
                self.finalize()
        finally:
            self.abort()

    def add_frame(self, frame: Mapping[str, Any]) -> None:
        """Append a frame to the current episode.

        Args:
            frame: one value for each feature: arrays of the declared shape and dtype; for videos PIL images or uint8
                (height, width, 3) arrays. A feature of shape (1,) also takes a bare number.

        Raises:
            ValueError: a feature is missing or unknown, has another shape or dtype, or holds NaN or infinity. The
                message names dataset, episode and frame.
        """
        self._check_open()
        where = f"dataset {self.root.name!r}, episode {self.num_episodes}, frame {len(self._frames)}"
        missing, unknown = self.features.keys() - frame.keys(), frame.keys() - self.features.keys()
        if missing or unknown:
            raise ValueError(
                f"{where}: missing features {sorted(missing)}, unknown features {sorted(unknown)}; "
                f"the dataset declares {list(self.features)}"
            )
        self._frames.append({key: checked_value(key, frame[key], self.features[key], where) for key in self.features})

    def save_episode(self, task: str | Sequence[str], about: Mapping[str, Any] | None = None) -> None:
        """Write the frames added since the last episode as one episode.

        Args:
            task: the instruction, or one for each frame.
            about: further entries of the episode in `meta/episodes`, numbers and texts; the same names for all episodes. With
                `success` and `source` ("demonstration", "policy" or "human"), `hf-vla label` knows how it ended and who acted.

        Raises:
            ValueError: no frames were added, an instruction is empty, there is another number of them than of frames, or the
                names of the entries differ from those before.
        """
        self._check_open()
        if not self._frames:
            raise ValueError(f"dataset {self.root.name!r}, episode {self.num_episodes}: no frames were added")
        where, length = f"dataset {self.root.name!r}, episode {self.num_episodes}", len(self._frames)
        texts = [task] * length if isinstance(task, str) else list(task)
        if len(texts) != length:
            raise ValueError(
                f"{where}: {len(texts)} instructions for {length} frames; give one for all, or one for each"
            )
        tasks = list(dict.fromkeys(texts))
        for text in tasks:
            check_instruction(text, f"{where}: the instruction")
        about = dict(about or {})
        if self._episodes and about.keys() != self._about:
            raise ValueError(
                f"{where} is described by {sorted(about)}, episodes before it by {sorted(self._about)}; give all the same"
            )
        self._about = about.keys()
        for text in tasks:
            self._tasks.setdefault(text, len(self._tasks))
        columns = {key: np.stack([frame[key] for frame in self._frames]) for key in self._vector_keys}
        frame_index = np.arange(length, dtype=np.int64)
        columns["timestamp"] = (frame_index / self.fps).astype(np.float32)[:, None]
        columns["frame_index"] = frame_index[:, None]
        columns["episode_index"] = np.full((length, 1), self.num_episodes, dtype=np.int64)
        columns["index"] = frame_index[:, None] + self.num_frames
        columns["task_index"] = np.array([[self._tasks[text]] for text in texts], dtype=np.int64)

        episode: dict[str, Any] = {"episode_index": self.num_episodes, "tasks": tasks, "length": length, **about}
        episode.update(self._write_data(columns))
        episode.update(dataset_from_index=self.num_frames, dataset_to_index=self.num_frames + length)
        statistics: EpisodeStatistics = {}
        for key in self._video_keys:
            frames = [frame[key] for frame in self._frames]
            episode.update(self._write_video(key, frames))
            statistics[key] = self._images[key].add_episode(frames)
        for key, values in columns.items():
            statistics[key] = vector_statistics(values)
            self._vectors.setdefault(key, []).append(values)
        for key, values in statistics.items():
            episode.update({f"stats/{key}/{name}": value for name, value in values.items()})
        episode["meta/episodes/chunk_index"] = episode["meta/episodes/file_index"] = 0
        self._episodes.append(episode)
        self.num_episodes += 1
        self.num_frames += length
        self._frames = []

    def discard_episode(self) -> None:
        """Forget the frames added since the last saved episode."""
        self._frames = []

    def finalize(self) -> Path:
        """Close all files, write the metadata and rename the temporary folder to `root`; returns `root`.

        Raises:
            ValueError: there is no episode, or the last one was neither saved nor discarded.
            OSError: `root` came into being meanwhile.
        """
        self._check_open()
        if self._frames:
            raise ValueError(
                f"dataset {self.root.name!r}, episode {self.num_episodes}: {len(self._frames)} frames were added but "
                "not saved; call save_episode(task) or discard_episode() first"
            )
        if not self.num_episodes:
            raise ValueError(f"dataset {self.root.name!r} has no episodes; save at least one before finalize()")
        self._close_files()
        self._write_metadata()
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()
        os.rename(self._partial, self.root)
        self._partial = None
        return self.root

    def abort(self) -> None:
        """Give up: remove all that was written. Further calls do nothing."""
        if self._partial is not None:
            self._close_files()
            shutil.rmtree(self._partial)
            self._partial = None

    def _check_open(self) -> None:
        if self._partial is None:
            raise ValueError(f"the writer of {self.root} is finalized or aborted; make a new LeRobotWriter")

    def _write_data(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        path = self._partial / _DATA_PATH.format(**file_indices(max(self._data_file, 0)))
        if self._data_writer is not None and path.stat().st_size >= _DATA_FILES_SIZE_IN_MB * 2**20:
            self._data_writer.close()
            self._data_writer = None
        if self._data_writer is None:
            self._data_file += 1
            path = self._partial / _DATA_PATH.format(**file_indices(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data_writer = pq.ParquetWriter(path, self._schema, compression="snappy", write_page_checksum=True)
        arrays = [arrow_array(columns[field.name], field.type) for field in self._schema]
        self._data_writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        return {f"data/{name}": index for name, index in file_indices(self._data_file).items()}

    def _write_video(self, key: str, frames: list[np.ndarray]) -> dict[str, Any]:
        writer = self._video_writers.get(key)
        if writer is None or writer.num_bytes >= _VIDEO_FILES_SIZE_IN_MB * 2**20:
            if writer is not None:
                writer.close()
            self._video_file[key] += 1
            path = self._partial / _VIDEO_PATH.format(video_key=key, **file_indices(self._video_file[key]))
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = VideoWriter(path, self.fps, *frames[0].shape[:2], crf=self._crf, gop_size=self._gop_size)
            self._video_writers[key] = writer
        first = writer.num_frames
        for index, frame in enumerate(frames):
            writer.add(frame, key_frame=index == 0)
        return {
            **{f"videos/{key}/{name}": index for name, index in file_indices(self._video_file[key]).items()},
            f"videos/{key}/from_timestamp": first / self.fps,
            f"videos/{key}/to_timestamp": writer.num_frames / self.fps,
        }

    def _close_files(self) -> None:
        if self._data_writer is not None:
            self._data_writer.close()
            self._data_writer = None
        for writer in self._video_writers.values():
            writer.close()
        self._video_writers = {}

    def _write_metadata(self) -> None:
        meta = self._partial / "meta"
        episodes = self._partial / _EPISODES_PATH.format(**file_indices(0))
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)
        index = pd.Index(list(self._tasks), name="task")
        pd.DataFrame({"task_index": list(self._tasks.values())}, index=index).to_parquet(meta / "tasks.parquet")
        statistics = {key: images.total() for key, images in self._images.items()}
        statistics.update({key: vector_statistics(np.concatenate(v)) for key, v in self._vectors.items()})
        write_json(meta / "stats.json", statistics)
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": _DATA_FILES_SIZE_IN_MB,
            "video_files_size_in_mb": _VIDEO_FILES_SIZE_IN_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH if self._video_keys else None,
            "features": {**self.features, **OWN_FEATURES},
        }
        for key in self._video_keys:
            info["features"][key]["info"] = video_info(self.features[key]["shape"], self.fps)
        clashing = sorted(info.keys() & self.extra_info.keys())
        if clashing:
            raise ValueError(f"info names entries that the writer fills itself: {clashing}; rename them")
        write_json(meta / "info.json", {**info, **self.extra_info})
        if self.modality is not None:
            write_json(meta / "modality.json", dict(self.modality))


def remove_leftovers(root: str | Path) -> None:
    """Remove what writers of a dataset that were killed left beside it; none may be running."""
    root = Path(root)
    for left in root.parent.glob(_PARTIAL.format(glob.escape(root.name), "[0-9a-f]" * 8)):
        shutil.rmtree(left)
