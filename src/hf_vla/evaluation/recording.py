"""Rollouts as a LeRobot dataset: what a policy saw and did, of solved and failed episodes alike.

While an evaluation runs, each finished episode is a file of its own in the evaluation's folder, lossless and written at once; when all
are there, they become the dataset. An interrupted evaluation that is continued records only what is missing.

Per episode, `meta/episodes` has `success`, `source` ("policy"), `policy` (its fingerprint), `environment_task`, `seed` and `score`.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_vla.data.lerobot_writer import LeRobotWriter, remove_leftovers
from hf_vla.data.outcomes import POLICY
from hf_vla.evaluation.demonstrations import dataset_features, write_frames
from hf_vla.evaluation.environments import Environment
from hf_vla.evaluation.results import EpisodeKey, Outcome, differences, episode_file
from hf_vla.utils.files import atomic_write

__all__ = ["EpisodeFile", "Recording"]

logger = logging.getLogger(__name__)

_FOLDER = "recording"
# PNG without loss, at the level that is quick.
_COMPRESSION = 1


class EpisodeFile:
    """Collects one episode step by step: the observation before each action, and the action as executed.

    Args:
        environment: in which the episode runs; asked for its observation at each step, which draws nothing.
    """

    def __init__(self, environment: Environment):
        self._environment = environment
        self._rows: list[dict[str, Any]] = []
        self._observation: Mapping[str, Any] | None = None
        self._instruction = ""

    def see(self, action: np.ndarray | None, success: bool) -> None:
        """Note the start of the episode (no action), or an executed action and whether the state that it reached is solved."""
        if action is not None:
            images = [_png(image) for image in self._observation["image"]]
            state = self._observation.get("state")
            self._rows.append(
                {
                    "images": images,
                    "state": [] if state is None else np.asarray(state, np.float32).reshape(-1).tolist(),
                    "action": np.asarray(action, np.float32).tolist(),
                    "success": bool(success),
                    "instruction": self._instruction,
                }
            )
        self._observation, self._instruction = self._environment.observation(), self._environment.instruction

    def write(self, file: Path) -> None:
        """Write the episode, whole or not at all."""
        kinds = {
            "images": pa.list_(pa.binary()),
            "state": pa.list_(pa.float32()),
            "action": pa.list_(pa.float32()),
            "success": pa.bool_(),
            "instruction": pa.string(),
        }
        with atomic_write(file) as partial:
            table = pa.Table.from_pylist(self._rows, schema=pa.schema(list(kinds.items())))
            pq.write_table(table, partial, compression="none")


class Recording:
    """The dataset that the episodes of an evaluation become.

    Args:
        dataset: its folder. If it is there, it must be this evaluation's, whole.
        output: the evaluation's folder, which holds the episodes meanwhile.
        environment: one of the evaluation's, to name cameras, states and actions; it may be closed afterwards.

    Raises:
        FileExistsError: `dataset` is something else than a recording.
    """

    def __init__(self, dataset: str | Path, output: str | Path, environment: Environment):
        self._environment, self._settings, self._modality = environment, environment.settings(), environment.modality()
        self.dataset, self.folder = Path(dataset), Path(output) / _FOLDER
        self.is_whole = self.dataset.exists() and (not self.dataset.is_dir() or any(self.dataset.iterdir()))
        self._recorded: set[EpisodeKey] = set()
        if self.is_whole:
            for episode in _recorded(self.dataset):
                self._recorded.add(EpisodeKey("none", episode["environment_task"], episode["seed"]))

    def file(self, key: EpisodeKey) -> Path | None:
        """Return where an episode is to be written; None if it is not to be recorded, as those of controls."""
        if key.control != "none":
            return None
        return self.folder / episode_file(key.task, key.seed, ".parquet")

    def check(
        self,
        planned: Iterable[EpisodeKey],
        finished: Mapping[EpisodeKey, Outcome],
        identity: Mapping[str, Any] | None,
    ) -> None:
        """Check that what is finished was recorded, and that a dataset that is whole is this evaluation's.

        Args:
            planned: episodes that are asked for.
            finished: those that this evaluation has.
            identity: what tells its policy from others; None if nothing is finished.

        Raises:
            FileExistsError: episodes are finished without a recording, or missing in a whole dataset; or this is another
                evaluation's.
        """
        planned = [key for key in planned if key.control == "none"]
        if self.is_whole:
            if missing := [key for key in planned if key not in self._recorded]:
                raise FileExistsError(
                    f"{self.dataset} is a whole dataset of {len(self._recorded)} episodes, without {len(missing)} of those asked for, "
                    f"such as seed {missing[0].seed} of {missing[0].task}; record these into another folder, by an evaluation of "
                    "their own, and train on both"
                )
            if new := [key for key in planned if key not in finished]:
                raise FileExistsError(
                    f"{self.dataset} is the whole recording of another evaluation: {len(new)} episodes of this one are not finished, such "
                    f"as seed {new[0].seed} of {new[0].task}; choose another folder to record these, or remove it"
                )
            recorded = json.loads((self.dataset / "meta" / "info.json").read_text(encoding="utf-8")).get("policy", {})
            if recorded != identity:
                raise FileExistsError(
                    f"{self.dataset} is the recording of another policy: {differences(recorded, identity or {})}; choose another folder"
                )
            return
        if lost := [key for key in planned if key in finished and not self.file(key).is_file()]:
            raise FileExistsError(
                f"{len(lost)} episodes of this evaluation are finished and were not recorded, such as seed {lost[0].seed} of "
                f"{lost[0].task}; choose another output to run them again"
            )

    def finish(
        self,
        planned: Sequence[EpisodeKey],
        outcomes: Mapping[EpisodeKey, Outcome],
        identity: Mapping[str, Any],
    ) -> None:
        """Make the dataset of the recorded episodes, in the order in which they were planned.

        Args:
            outcomes: of all planned episodes.
            identity: what tells the policy from others.
        """
        environment = self._environment
        keys = [key for key in planned if key.control == "none"]
        if self.is_whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        first = _read(self.file(keys[0]))
        sizes = [Image.open(io.BytesIO(png)).size for png in first[0]["images"]]
        features = dataset_features(environment, sizes)
        tasks: dict[str, dict[str, list[int]]] = {}
        for key in keys:
            tasks.setdefault(key.task, {"seeds": []})["seeds"].append(key.seed)
        about = {"name": environment.name, "settings": self._settings, "tasks": tasks}
        info = {"environment": about, "policy": dict(identity)}
        told = str(identity.get("fingerprint") or json.dumps(dict(identity), sort_keys=True))
        has_scores = any(outcomes[key].score is not None for key in keys)
        remove_leftovers(self.dataset)
        with LeRobotWriter(
            self.dataset, environment.fps, features, environment.robot_type, info, crf=12, modality=self._modality
        ) as writer:
            for key in keys:
                rows = _read(self.file(key))
                write_frames(writer, environment.camera_names, _frames(rows))
                outcome = outcomes[key]
                entries = {"success": outcome.success, "source": POLICY, "policy": told}
                entries |= {"environment_task": key.task, "seed": key.seed}
                if has_scores:
                    entries["score"] = float("nan") if outcome.score is None else outcome.score
                writer.save_episode([row["instruction"] for row in rows], entries)
        shutil.rmtree(self.folder, ignore_errors=True)
        solved = sum(outcomes[key].success for key in keys)
        logger.info("%s: %d episodes recorded, %d solved", self.dataset, len(keys), solved)


def _frames(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        images = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in row["images"]]
        state, action = (np.asarray(row[name], np.float32) for name in ("state", "action"))
        yield {"images": images, "state": state, "action": action, "success": row["success"]}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", compress_level=_COMPRESSION)
    return buffer.getvalue()


def _read(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file, memory_map=True).to_pylist()


def _recorded(dataset: Path) -> list[dict[str, Any]]:
    """Return task and seed of each episode of a recording.

    Raises:
        FileExistsError: it is something else.
    """
    names = ["environment_task", "seed"]
    try:
        return pq.read_table(dataset / "meta" / "episodes", columns=names).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FileExistsError(
            f"{dataset} exists, and is not a recording of hf-vla eval --record; choose another folder or remove it"
        ) from error
