"""What a run writes beside its checkpoints: `summary.jsonl`, `loss.png` and `config.yaml`."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.utils import logging

from ..utils.files import atomic_write, full_disk_named

logger = logging.get_logger(__name__)

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
# Settings of one start, not of the run: a resumed run is the same run, and repeating it means repeating all of it.
_NOT_RECORDED = ("resume_from_checkpoint", "overwrite_output_dir")


class ShortRunCallback(TrainerCallback):
    """Logs the last step of a run that is shorter than `logging_steps`, which would otherwise log no loss at all."""

    def on_step_end(self, args, state, control, **kwargs):
        ends = state.global_step >= state.max_steps and args.logging_strategy != "no"
        if ends and not any("loss" in row for row in state.log_history):
            control.should_log = True
        return control


class LossPlotCallback(TrainerCallback):
    """Writes `loss.png` beside the checkpoints, see [`plot_curves`]."""

    def on_save(self, args, state, control, **kwargs):
        self._plot(args, state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._plot(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._plot(args, state)

    def _plot(self, args, state) -> None:
        if state.is_world_process_zero:
            plot_curves(state.log_history, os.path.join(args.output_dir, "loss.png"))


class SummaryCallback(TrainerCallback):
    """Appends one JSON line per log and evaluation to `summary.jsonl` beside the checkpoints.

    A line holds `step`, `epoch`, `time` (UTC) and all numbers that were logged. A new run starts a new file. A resumed one keeps
    the lines up to its checkpoint, because the later steps come again.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        file = self._file(args)
        if not state.is_world_process_zero or not file.exists():
            return
        kept = [row for row in read_summary(file) if row["step"] <= state.global_step] if state.global_step else []
        with atomic_write(file) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        row = {
            "step": state.global_step,
            "epoch": state.epoch,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        row |= {name: value for name, value in logs.items() if isinstance(value, (int, float, str))}
        file = self._file(args)
        file.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_named(file), open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

    @staticmethod
    def _file(args) -> Path:
        return Path(args.output_dir) / "summary.jsonl"


def read_summary(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the lines of a `summary.jsonl`, except one that was cut short when the process was killed."""
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning(f"{file}: skipped a line that is cut short: {line[:60]!r}")
    return rows


def write_run_config(output: Path, recipe: Sequence[Any], given: dict[str, Any]) -> Path:
    """Write `config.yaml`, from which `hf-vla train` repeats the run.

    Args:
        output: the run's folder.
        recipe: the dataclasses that make up the recipe, all of whose fields are written. The training arguments are not among
            them: their values are derived from what was given.
        given: what was set by file or flag and is not the default.

    Returns:
        The file's path.
    """
    settings: dict[str, Any] = {}
    for part in recipe:
        settings |= dataclasses.asdict(part)
    settings |= {name: value for name, value in given.items() if name not in _NOT_RECORDED}
    file = output / "config.yaml"
    with atomic_write(file) as partial:
        partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


def plot_curves(rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> bool:
    """Draw the log of a run as a PNG, which is written whole or not at all.

    Panels, each only if there is data for it: training losses; learning rates, per group if they are logged as
    `learning_rate/GROUP`; losses and action errors of evaluations, if they are in normalised units; success rates.

    Args:
        rows: as in `TrainerState.log_history`.
        path: file to write.

    Returns:
        False if there is nothing to draw.
    """
    rates = series(rows, lambda name: name.startswith("learning_rate/"))
    panels = [
        ("training loss", "log", series([row for row in rows if "loss" in row], _is_loss)),
        ("learning rate", "linear", rates or series(rows, lambda name: name == "learning_rate")),
        ("evaluation", "log", series(rows, _is_evaluation_error)),
        ("success rate", "linear", series(rows, lambda name: name.startswith("eval_success"))),
    ]
    return plot_panels([panel for panel in panels if panel[2]], path, "step")


def plot_panels(
    panels: Sequence[tuple[str, str, dict[str, list[tuple[float, float]]]]], path: str | os.PathLike, xlabel: str
) -> bool:
    """Draw panels one below the other as a PNG, which is written whole or not at all; return false if there are none.

    Args:
        panels: title, scale ("log" or "linear"), and the points of each curve by its name.
    """
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 2.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, scale, curves) in zip(all_axes, panels, strict=True):
        for number, (name, points) in enumerate(curves.items()):
            steps, values = zip(*points, strict=True)
            # A single point makes no line.
            marker = "." if len(points) < 20 else ""
            axes.plot(steps, values, marker=marker, color=_COLOURS[number % len(_COLOURS)], label=name, linewidth=1.2)
        values = [value for points in curves.values() for _, value in points]
        wide = min(values) > 0 and max(values) > 3 * min(values)  # else a logarithmic scale has too few ticks
        axes.set(ylabel=title, yscale=scale if wide else "linear")
        if title == "success rate":
            axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="best")
    all_axes[-1].set_xlabel(xlabel)
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return True


def _is_loss(name: str) -> bool:
    return name == "loss" or (name.endswith("_loss") and not name.startswith(("eval_", "train_")))


def _is_evaluation_error(name: str) -> bool:
    """Whether it is in normalised units; the errors of single dimensions are not."""
    return name.startswith("eval_") and (name.endswith("loss") or name == "eval_action_error")


def series(
    rows: Sequence[dict[str, Any]], chosen: Callable[[str], bool], over: str = "step"
) -> dict[str, list[tuple[float, float]]]:
    """Return the points (step, value) of the chosen numbers by name, in their order; or over "epoch"."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if chosen(name) and isinstance(value, (int, float)):
                found.setdefault(name, []).append((row[over], value))
    return found


__all__ = [
    "ShortRunCallback",
    "LossPlotCallback",
    "SummaryCallback",
    "plot_curves",
    "plot_panels",
    "read_summary",
    "series",
    "write_run_config",
]
