"""How episodes of a LeRobot dataset ended, and who acted in them: what learning from experience needs to know.

Per episode, in `meta/episodes` (v3.0) or `meta/episodes.jsonl` (v2): `success`, and `source`, "demonstration", "policy" or "human".
Without `success`, the column `next.success` of the frames tells it. Per frame, a column of booleans such as `intervention` marks the
frames in which a human took over.
"""

from dataclasses import dataclass

import numpy as np

from .lerobot import LeRobotDataset
from .metadata_files import read_columns, read_json_lines, to_booleans, to_numbers

DEMONSTRATION, POLICY, HUMAN = SOURCES = ("demonstration", "policy", "human")
#: Columns of booleans that mark a human's corrections: ours, and those of LeRobot's recordings with a human in the loop
INTERVENTION_COLUMNS = ("intervention", "is_intervention", "complementary_info.is_intervention")
_SUCCESS_COLUMN = "next.success"


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        success: whether it was solved.
        steps_left: integers (L,), steps from each frame to the first in which it was solved, 0 after that; of an episode that
            failed, to its last frame.
        source: (L,), who acted in each frame, one of `SOURCES`.
        task: the instruction of its first frame.
    """

    success: bool
    steps_left: np.ndarray
    source: np.ndarray
    task: str

    def __len__(self) -> int:
        return len(self.steps_left)


def read_outcomes(
    dataset: LeRobotDataset, source: str | None = None, assume_success: bool = False
) -> dict[int, Outcome]:
    """Return how each chosen episode of a dataset ended, by its index.

    Args:
        dataset: with its tables.
        source: who acted in episodes that don't say; by default "demonstration".
        assume_success: count episodes that don't tell their success as solved.

    Raises:
        ValueError: an unknown source, a success that is neither true nor false, or nothing tells which episodes were solved.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source is {source!r}; possible: {', '.join(SOURCES)}")
    told = _told_by_metadata(dataset)
    columns = [name for name in (_SUCCESS_COLUMN, *INTERVENTION_COLUMNS) if name in dataset.metadata.features]
    by_frame = _told_by_frames(dataset, columns)
    outcomes = {}
    for row, episode in enumerate(dataset.episode_indices):
        length, own = int(dataset.metadata.length[row]), by_frame.get(episode, {})
        solved = own.get(_SUCCESS_COLUMN)
        success = told.get(episode, {}).get("success")
        if success is not None:
            if success not in (0, 1):  # True and False are
                raise ValueError(
                    f"{dataset.name}: episode {episode} has the success {success!r}; it must be true or false"
                )
            success = bool(success)
        if success is None and solved is not None:
            success = bool(solved.any())
        if success is None and assume_success:
            success = True
        if success is None:
            raise ValueError(
                f"{dataset.name} does not tell which episodes were solved: neither success in meta/episodes nor the column "
                f"{_SUCCESS_COLUMN} is there. Record rollouts by hf-vla eval --record; of demonstrations, which are all solved, "
                "say so (hf-vla label --assume-success), or leave successes_only out of the recipe"
            )
        first = int(np.argmax(solved)) if success and solved is not None and solved.any() else length - 1
        acted = told.get(episode, {}).get("source") or source or DEMONSTRATION
        if acted not in SOURCES:
            raise ValueError(
                f"{dataset.name}: episode {episode} has the source {acted!r}; possible: {', '.join(SOURCES)}"
            )
        sources = np.full(length, acted, dtype=object)
        for name in columns:
            if name in INTERVENTION_COLUMNS and name in own:
                sources[own[name]] = HUMAN
        left = np.maximum(first - np.arange(length), 0)
        outcomes[episode] = Outcome(success, left, sources, dataset.instruction_of(row))
    return outcomes


def successful_episodes(dataset: LeRobotDataset) -> list[int]:
    """Return the chosen episodes of a dataset that were solved.

    Raises:
        ValueError: nothing tells which, or none was.
    """
    solved = [episode for episode, outcome in read_outcomes(dataset).items() if outcome.success]
    if not solved:
        raise ValueError(f"{dataset.name} has no episode that was solved")
    return solved


def _told_by_metadata(dataset: LeRobotDataset) -> dict[int, dict]:
    """Return `success` and `source` of episodes, as far as `meta/` tells them."""
    meta = dataset.root / "meta"
    told: dict[int, dict] = {}
    if (lines := meta / "episodes.jsonl").exists():
        for line in read_json_lines(lines, {"episode_index": int}):
            told[line["episode_index"]] = {name: line.get(name) for name in ("success", "source")}
        return told
    for path in sorted((meta / "episodes").rglob("*.parquet")):
        table = read_columns(path, ["episode_index"], ["success", "source"])
        index = to_numbers(table["episode_index"], "episode_index", np.int64, path)
        names = [name for name in ("success", "source") if name in table.column_names]
        values = {name: table[name].to_pylist() for name in names}
        for row, episode in enumerate(index.tolist()):
            told[episode] = {name: values[name][row] for name in names}
    return told


def _told_by_frames(dataset: LeRobotDataset, columns: list[str]) -> dict[int, dict[str, np.ndarray]]:
    """Return columns of booleans by episode, each (L,)."""
    found: dict[int, dict[str, np.ndarray]] = {}
    if not columns:
        return found
    for file in dataset.metadata.data.paths:
        path = dataset.root / file
        table = read_columns(path, ["episode_index", *columns])
        episode = to_numbers(table["episode_index"], "episode_index", np.int64, path)
        order = np.argsort(episode, kind="stable")
        indices, first = np.unique(episode[order], return_index=True)
        for name in columns:
            values = to_booleans(table[name], name, path)[order]
            for index, of_episode in zip(indices.tolist(), np.split(values, first)[1:], strict=True):
                found.setdefault(index, {})[name] = of_episode
    return found


__all__ = ["DEMONSTRATION", "HUMAN", "POLICY", "SOURCES", "Outcome", "read_outcomes", "successful_episodes"]
