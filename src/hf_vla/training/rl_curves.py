"""The curves of a run of reinforcement learning, as a PNG."""

import os
from collections.abc import Sequence
from typing import Any

from .run_log import plot_panels, series

#: title → names of what is logged
_PANELS = {
    "success rate": ("rollout/success_once", "eval_success"),
    "episode length": ("rollout/episode_length",),
    "policy": ("actor/clip_fraction", "actor/approx_kl", "actor/ratio_abs"),
    "critic": ("critic/explained_variance", "critic/value_loss"),
    "gradient norm": ("grad_norm",),
}


def plot_learning(rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> bool:
    """Draw the log of a run over its iterations, as `plot_curves` does over steps; false if there is nothing to draw.

    Args:
        rows: as in `TrainerState.log_history`.
        path: file to write.
    """
    panels = [
        (title, "linear", series(rows, lambda name, names=names: name in names, "epoch"))
        for title, names in _PANELS.items()
    ]
    return plot_panels([panel for panel in panels if panel[2]], path, "iteration")


__all__ = ["plot_learning"]
