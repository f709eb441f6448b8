"""What a value function says of some episodes, frame by frame, as a PNG."""

import os
from collections.abc import Mapping

import numpy as np

from ..data.outcomes import Outcome
from .run_log import plot_panels

#: Tasks that are drawn, and episodes of each that were solved, or not.
_TASKS, _EPISODES = 4, 3


def plot_values(columns: Mapping[str, np.ndarray], outcomes: Mapping[int, Outcome], path: str | os.PathLike) -> bool:
    """Draw the values of the first tasks' first solved and failed episodes over their frames; false if there are none.

    Args:
        columns: of the labels, as [`~hf_vla.data.advantage_labels.read_returns`] returns them.
        outcomes: how each episode ended, by its index.
        path: file to write, whole or not at all.
    """
    panels = []
    for task in sorted({outcome.task for outcome in outcomes.values()})[:_TASKS]:
        curves = {}
        for success, kind in ((True, "solved"), (False, "failed")):
            of_kind = [index for index, one in outcomes.items() if (one.task, one.success) == (task, success)]
            for index in of_kind[:_EPISODES]:
                rows = columns["episode_index"] == index
                points = zip(columns["frame_index"][rows].tolist(), columns["value"][rows].tolist(), strict=True)
                curves[f"{kind}, episode {index}"] = list(points)
        panels.append((f"value: {task[:32]}", "linear", curves))
    return plot_panels(panels, path, "frame")


__all__ = ["plot_values"]
