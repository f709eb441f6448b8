"""A run's curves as one picture: losses, learning rates, and what evaluations found."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..utils.files import atomic_write

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def plot_curves(rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> bool:
    """Draw the log of a run as a PNG, whole or not at all; False where there is nothing to draw.

    Args:
        rows: as `TrainerState.log_history` holds them. Panels, each only where there is something in it: training losses;
            learning rates, of each group where they are logged as `learning_rate/GROUP`; losses and action error of
            evaluations, as far as they are in normalised units; success rates.
        path: file to write.
    """
    rates = _series(rows, lambda name: name.startswith("learning_rate/"))
    panels = [
        ("training loss", "log", _series([row for row in rows if "loss" in row], _is_loss)),
        ("learning rate", "linear", rates or _series(rows, lambda name: name == "learning_rate")),
        ("evaluation", "log", _series(rows, _is_evaluation_error)),
        ("success rate", "linear", _series(rows, lambda name: name.startswith("eval_success"))),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 2.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)  # needs no screen
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, scale, series) in zip(all_axes, panels, strict=True):
        for number, (name, points) in enumerate(series.items()):
            steps, values = zip(*points, strict=True)
            # One point is no line.
            marker = "." if len(points) < 20 else ""
            axes.plot(steps, values, marker=marker, color=_COLOURS[number % len(_COLOURS)], label=name, linewidth=1.2)
        values = [value for points in series.values() for _, value in points]
        wide = min(values) > 0 and max(values) > 3 * min(values)  # else a logarithmic scale has no ticks to read
        axes.set(ylabel=title, yscale=scale if wide else "linear")
        if title == "success rate":
            axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="best")
    all_axes[-1].set_xlabel("step")
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return True


def _is_loss(name: str) -> bool:
    return name == "loss" or (name.endswith("_loss") and not name.startswith(("eval_", "train_")))


def _is_evaluation_error(name: str) -> bool:
    """Not the errors of single dimensions: their units differ."""
    return name.startswith("eval_") and (name.endswith("loss") or name == "eval_action_error")


def _series(rows: Sequence[dict[str, Any]], chosen: Callable[[str], bool]) -> dict[str, list[tuple[int, float]]]:
    """By name, the points (step, value) of numbers that are chosen, in their order."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if chosen(name) and isinstance(value, (int, float)):
                series.setdefault(name, []).append((row["step"], value))
    return series


__all__ = ["plot_curves"]
