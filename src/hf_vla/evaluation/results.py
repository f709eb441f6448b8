"""The folder of an evaluation: every finished episode is on the disk at once, and the same command finishes the rest.

    evaluation.json         what is evaluated: the policy, the simulator and its settings
    episodes.csv            one row per finished episode
    success_summary.csv     one row per policy, control and task, written at the end
    success_summary.png
    raw_success.txt         success rates as StarVLA's model cards have them, also in success_summary/
    success_summary/
    videos/

`ResultsFolder` keeps the first two; the rest is made of them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_vla.utils.files import atomic_write, full_disk_named

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process from the folder
    fcntl = None

__all__ = [
    "DESCRIPTION",
    "EPISODES",
    "EpisodeKey",
    "Outcome",
    "ResultsFolder",
    "as_json",
    "differences",
    "episode_file",
    "read_description",
    "read_episodes",
]

DESCRIPTION, EPISODES = "evaluation.json", "episodes.csv"
_COLUMNS = ("control", "task", "seed", "success", "length", "score")


class EpisodeKey(NamedTuple):
    """Which episode of an evaluation it is; see `SummaryRow` for the controls."""

    control: str
    task: str
    seed: int


def episode_file(task: str, seed: int, suffix: str) -> str:
    """Return the name of a file of one episode, whose suffix is such as ".mp4"."""
    return f"{task.replace('/', '-')}-seed-{seed}{suffix}"


class Outcome(NamedTuple):
    """Whether the episode was solved, how many steps were executed, and the benchmark's own score, if it has one."""

    success: bool
    length: int
    score: float | None = None


class ResultsFolder:
    """The results of one evaluation, open for adding episodes.

    Args:
        folder: made if it is not there.
        protocol: what decides how an episode goes, as JSON: simulator, settings, how chunks are executed. Which tasks, seeds
            and controls are run is not part of it.
        about: what else is worth knowing, such as the policy's name; not compared.

    Raises:
        FileExistsError: the folder is a file, holds results that were made without `evaluation.json`, those of another
            protocol, or another process is adding to it.
        ValueError: its files are damaged.
    """

    def __init__(
        self, folder: str | Path, protocol: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file; choose another output")
        self._is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            protocol = as_json(protocol)
            found = self._description()
            self._check_protocol(found, protocol)
            self.description = found or {"protocol": protocol, "about": as_json(about or {}), "policies": {}}
            #: the finished episodes, in the order in which they are on the disk
            self.finished = read_episodes(self.folder) if found and (self.folder / EPISODES).exists() else {}
            if found is None:
                self._save_description()
            self._write_episodes(self.finished)  # also without a row that was cut short
        except BaseException:
            self._unlock()
            raise
        self._file = self._open()

    @property
    def policies(self) -> dict[str, Any]:
        """What identified each policy when its first episode finished, by its key; see `policy_identity`."""
        return self.description["policies"]

    def add(self, key: EpisodeKey, outcome: Outcome) -> None:
        """Append a finished episode; it is on the disk when this returns.

        Raises:
            OSError: it can't be written, for example because the disk is full.
        """
        if key in self.finished:
            raise ValueError(f"{key} is among the results already")
        self._append(_row(key, outcome))
        self.finished[key] = outcome

    def identify(self, policy: str, identity: Mapping[str, Any]) -> None:
        """Note what identifies a policy, or check that it is still the same.

        Raises:
            ValueError: it is another one than in the part of the evaluation that is finished.
        """
        identity = as_json(identity)
        before = self.policies.setdefault(policy, identity)
        if before != identity:
            raise ValueError(f"{self.folder} holds results of another policy: {differences(before, identity)}")
        self._save_description()

    def sort(self, order: Sequence[EpisodeKey]) -> None:
        """Put the finished episodes into this order; those that it doesn't name come last."""
        ordered = {key: self.finished[key] for key in order if key in self.finished}
        self.finished = {**ordered, **self.finished}
        self._file.close()
        self._write_episodes(self.finished)
        self._file = self._open()

    def close(self) -> None:
        """Let another process continue this evaluation; a new folder into which no episode came is removed."""
        self._file.close()
        if self._is_new and not self.finished:
            for name in (EPISODES, DESCRIPTION):
                (self.folder / name).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._unlock()

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _description(self) -> dict[str, Any] | None:
        file = self.folder / DESCRIPTION
        if not file.exists():
            if (self.folder / EPISODES).exists() or (self.folder / "success_summary.csv").exists():
                raise FileExistsError(
                    f"{self.folder} holds an evaluation already, without {DESCRIPTION}, so it can't be continued; choose "
                    "another output or remove it"
                )
            return None
        return read_description(self.folder)

    def _check_protocol(self, found: Mapping[str, Any] | None, protocol: dict[str, Any]) -> None:
        if found is not None and found["protocol"] != protocol:
            raise FileExistsError(
                f"{self.folder} holds an evaluation already, with other settings: {differences(found['protocol'], protocol)}; "
                "choose another output, or give the same settings to continue it"
            )

    def _locked(self) -> int | None:
        if fcntl is None:
            return None
        lock = os.open(self.folder, os.O_RDONLY)  # no lock file: nothing to be left behind
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FileExistsError(
                f"another process is evaluating into {self.folder}; wait for it, or choose another output"
            ) from None
        except OSError:  # a file system without locks
            pass
        return lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self):
        return open(self.folder / EPISODES, "a", newline="", encoding="utf-8")

    def _save_description(self) -> None:
        with atomic_write(self.folder / DESCRIPTION) as partial:
            partial.write_text(json.dumps(self.description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _append(self, row: Sequence[Any]) -> None:
        with full_disk_named(self.folder / EPISODES):
            csv.writer(self._file, lineterminator="\n").writerow(row)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_episodes(self, episodes: Mapping[EpisodeKey, Outcome]) -> None:
        with atomic_write(self.folder / EPISODES) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(_row(key, outcome) for key, outcome in episodes.items())
            file.flush()
            os.fsync(file.fileno())


def _row(key: EpisodeKey, outcome: Outcome) -> tuple[Any, ...]:
    score = "" if outcome.score is None else f"{outcome.score:.6g}"
    return (*key, int(outcome.success), outcome.length, score)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read an evaluation's `evaluation.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = Path(folder) / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: is {folder} the output of hf-vla eval?")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(description[name], dict) for name in ("protocol", "about", "policies")):
            raise ValueError("protocol, about and policies must be objects")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove the folder and evaluate again") from error
    return description


def read_episodes(folder: str | Path) -> dict[EpisodeKey, Outcome]:
    """Read an evaluation's `episodes.csv`, without a last row that was cut short when its process was killed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a row is damaged, or an episode is there twice.
    """
    file = Path(folder) / EPISODES
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: is {folder} the output of hf-vla eval?")
    text = file.read_bytes().decode("utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    episodes: dict[EpisodeKey, Outcome] = {}
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            key = EpisodeKey(row["control"], row["task"], int(row["seed"]))
            score = row.get("score")  # older evaluations have no such column
            success = {"0": False, "1": True}[row["success"]]
            outcome = Outcome(success, int(row["length"]), float(score) if score else None)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number} is damaged: {row}; remove it") from error
        if key in episodes:
            raise ValueError(f"{file}, line {number}: {key} is there twice; remove one")
        episodes[key] = outcome
    return episodes


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two descriptions, in words."""
    named = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r:.200} and is now {now.get(name)!r:.200}" for name in named)


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is read again after writing it as JSON: tuples become lists, paths become texts."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))
