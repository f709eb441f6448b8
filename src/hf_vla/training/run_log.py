"""What a run leaves of itself beside its checkpoints: `summary.jsonl`, `loss.png`, `config.yaml`."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.utils import logging

from ..utils.files import atomic_write
from .curves import plot_curves

logger = logging.get_logger(__name__)

# Of this start alone: a run that goes on from a checkpoint is the same run, and to repeat it is to repeat all of it.
_NOT_RECORDED = ("resume_from_checkpoint", "overwrite_output_dir")


class ShortRunCallback(TrainerCallback):
    """Logs the last step of a run that is shorter than `logging_steps`: it would log no loss at all."""

    def on_step_end(self, args, state, control, **kwargs):
        ends = state.global_step >= state.max_steps and args.logging_strategy != "no"
        if ends and not any("loss" in row for row in state.log_history):
            control.should_log = True
        return control


class LossPlotCallback(TrainerCallback):
    """Writes `loss.png` beside the checkpoints, see [`~hf_vla.training.curves.plot_curves`]."""

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
    """Appends one JSON line for each log and evaluation to `summary.jsonl` beside the checkpoints.

    A line holds `step`, `epoch`, `time` (UTC), all numbers that were logged, and for training logs `samples_per_second`
    since the last line, without evaluations and saving. A run that starts anew starts a new file. One that goes on from a
    checkpoint keeps the lines up to there, as the later steps come again.
    """

    def __init__(self) -> None:
        self._since = (0, time.perf_counter())  # step and time from which samples per second are counted

    def on_train_begin(self, args, state, control, **kwargs):
        self._restart(state)
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
        step, moment = self._since
        if "loss" in logs and state.global_step > step:
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            row["samples_per_second"] = (state.global_step - step) * batch / (time.perf_counter() - moment)
        file = self._file(args)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self._restart(state)

    def on_save(self, args, state, control, **kwargs):
        self._restart(state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._restart(state)

    def _restart(self, state) -> None:
        self._since = (state.global_step, time.perf_counter())

    @staticmethod
    def _file(args) -> Path:
        return Path(args.output_dir) / "summary.jsonl"


def read_summary(file: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `summary.jsonl`; one that a kill cut short is left out."""
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning(f"{file}: left out a line that is cut short: {line[:60]!r}")
    return rows


def write_run_config(output: Path, recipe: Sequence[Any], given: dict[str, Any]) -> Path:
    """Write `config.yaml`, from which `hf-vla train` repeats the run.

    Args:
        output: the run's folder.
        recipe: the dataclasses of which the recipe is made, all of whose fields are written; the training arguments apart,
            whose values are not what was given, but made of it.
        given: what was set, by file or flag, and is not the default.
    """
    settings: dict[str, Any] = {}
    for part in recipe:
        settings |= dataclasses.asdict(part)
    settings |= {name: value for name, value in given.items() if name not in _NOT_RECORDED}
    file = output / "config.yaml"
    with atomic_write(file) as partial:
        partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


__all__ = [
    "ShortRunCallback",
    "LossPlotCallback",
    "SummaryCallback",
    "read_summary",
    "write_run_config",
]
