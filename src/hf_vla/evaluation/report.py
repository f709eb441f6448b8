"""Write the results of an evaluation as a table and a figure, success rates with their confidence intervals."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean

from hf_vla.evaluation.comparison import Comparison, EvaluatedPolicy
from hf_vla.evaluation.results import Outcome
from hf_vla.utils.files import atomic_write

__all__ = [
    "SummaryRow",
    "can_plot",
    "find_training_step",
    "plot_summary",
    "summarize",
    "summarize_policies",
    "wilson_interval",
    "write_comparison",
    "write_starvla_summary",
    "write_summary",
]

_AVERAGE = "Average Across Tasks"


@dataclass(frozen=True)
class SummaryRow:
    """The results of one policy on one task.

    Attributes:
        policy: the policy's name.
        env: the simulator.
        task: the task.
        episodes, successes: counts.
        success_rate: successes / episodes.
        mean_length: mean number of executed steps per episode.
        wilson_low, wilson_high: 95 % confidence interval of the success rate.
        control: "none" for the policy itself, else the control: "untrained" (random weights), "blind" (images
            replaced by a constant) or "wrong instruction" (that of another task).
        seeds: of the episodes, such as "10000-10019".
        mean_score: mean of the benchmark's own score per episode, if it has one beside success.
    """

    policy: str
    env: str
    task: str
    episodes: int
    successes: int
    success_rate: float
    mean_length: float
    wilson_low: float
    wilson_high: float
    control: str = "none"
    seeds: str = ""
    mean_score: float | None = None


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval of a rate (E. B. Wilson, JASA 22, 1927), by default at 95 %.

    It stays within [0, 1] and does not understate the uncertainty of small counts: 20 of 20 gives (0.84, 1).

    Raises:
        ValueError: there are no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(f"{successes} successes of {episodes} episodes have no success rate")
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    margin = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    # At the ends the formula gives exactly 0 and 1, which rounding would miss.
    low = 0.0 if successes == 0 else (centre - margin) / scale
    high = 1.0 if successes == episodes else (centre + margin) / scale
    return low, high


def summarize(policy: str, env: str, task: str, outcomes: Mapping[int, Outcome], control: str = "none") -> SummaryRow:
    """Summarize the episodes of one policy on one task as a row.

    Args:
        outcomes: seed → outcome.

    Raises:
        ValueError: there are no episodes.
    """
    successes = sum(outcome.success for outcome in outcomes.values())
    scores = [outcome.score for outcome in outcomes.values() if outcome.score is not None]
    low, high = wilson_interval(successes, len(outcomes))
    return SummaryRow(
        policy=policy,
        env=env,
        task=task,
        episodes=len(outcomes),
        successes=successes,
        success_rate=successes / len(outcomes),
        mean_length=fmean(outcome.length for outcome in outcomes.values()),
        wilson_low=low,
        wilson_high=high,
        control=control,
        seeds=_spans(outcomes),
        mean_score=fmean(scores) if scores else None,
    )


def _spans(numbers: Iterable[int]) -> str:
    """Return whole numbers as spans: "0-9 12 14-15"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return " ".join("-".join(map(str, span)) for span in spans)


def find_training_step(model: str | Path) -> int | None:
    """Return at which step of its training a policy was saved: from its folder, else from its name; None if neither tells."""
    for name in ("policy_files.json", "trainer_state.json"):
        file = Path(model) / name
        if file.is_file():
            step = json.loads(file.read_text(encoding="utf-8")).get("global_step")
            if isinstance(step, int):
                return step
    named = re.search(r"(?:checkpoint-|steps_)(\d+)", Path(model).name)
    return int(named[1]) if named else None


def summarize_policies(policies: Sequence[EvaluatedPolicy]) -> list[SummaryRow]:
    """Summarize the episodes of several policies as rows, one per policy and task."""
    rows = []
    for policy in policies:
        for task in dict.fromkeys(task for task, _ in policy.outcomes):
            outcomes = {seed: outcome for (of_task, seed), outcome in policy.outcomes.items() if of_task == task}
            rows.append(summarize(policy.name, str(policy.protocol.get("env")), task, outcomes, policy.control))
    return rows


def write_comparison(
    policies: Sequence[EvaluatedPolicy], comparisons: Sequence[Comparison], folder: str | Path
) -> None:
    """Write what was compared into a folder.

    `comparison.csv` has the fields of `Comparison`; `success_summary.csv` and `success_summary.png` are those of all policies. If
    these were saved at different steps of a training, `raw_success.txt` and `success_summary/` show success over the steps.
    """
    folder = Path(folder)
    rows = summarize_policies(policies)
    _write_table(comparisons, Comparison, folder / "comparison.csv")
    write_summary(rows, folder / "success_summary.csv")
    plot_summary(rows, folder / "success_summary.png")
    step_of = {policy.name: policy.training_step for policy in policies if policy.control == "none"}
    if None not in step_of.values() and len(set(step_of.values())) == len(step_of) > 1:
        own = [replace(row, policy=str(step_of[row.policy])) for row in rows if row.control == "none"]
        write_starvla_summary(folder, sorted(own, key=lambda row: int(row.policy)))


def write_summary(rows: Sequence[SummaryRow], path: str | Path) -> Path:
    """Write the rows as a CSV file, atomically, with the fields of `SummaryRow` as columns."""
    return _write_table(rows, SummaryRow, Path(path))


def _write_table(rows: Sequence[SummaryRow | Comparison], kind: type, path: Path) -> Path:
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in values.items()})
    return path


def can_plot() -> bool:
    """Return whether matplotlib is installed, which hf-vla-client does not need."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def plot_summary(rows: Sequence[SummaryRow], path: str | Path) -> Path:
    """Plot the success rates as bars with 95 % intervals, grouped by task, into a PNG file, atomically."""
    # matplotlib is installed only with the extras for evaluation; the non-interactive backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    tasks = list(dict.fromkeys(row.task for row in rows))
    policies = list(dict.fromkeys(row.policy for row in rows))
    figure = Figure(figsize=(max(4.5, 1.4 + 0.6 * len(policies) * len(tasks)), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        chosen = [row for row in rows if row.policy == policy]
        x = [tasks.index(row.task) + (number - (len(policies) - 1) / 2) * width for row in chosen]
        rates = [row.success_rate for row in chosen]
        below = [row.success_rate - row.wilson_low for row in chosen]
        above = [row.wilson_high - row.success_rate for row in chosen]
        axes.bar(x, rates, width * 0.92, yerr=[below, above], capsize=3, ecolor="0.3", label=policy)
        for position, row in zip(x, chosen, strict=True):
            label = f"{row.successes}/{row.episodes}"
            axes.annotate(label, (position, row.wilson_high + 0.015), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylim(0, 1.09)
    axes.set_ylabel("success rate (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(3, len(policies)), frameon=False, fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
    return path


def write_starvla_summary(folder: str | Path, rows: Sequence[SummaryRow], training_step: int | None = None) -> None:
    """Write the success rates in the form of StarVLA's model cards.

    `raw_success.txt` has a line per task, which StarVLA's scripts read:
    `steps_20000_pytorch_model_infer_TASK-v0.log.run1 → Average success: 0.75`. `success_summary/` has the same file, the table
    `success_summary.csv` with a row per training step and a column per task, and, if matplotlib is installed, `success_plot.png`.

    Args:
        rows: of one policy, or of one at several training steps with the step as its name; controls are left out.
        training_step: of the policy, unless the rows' names are the steps. If it isn't known, the policy's name stands
            instead.
    """
    folder = Path(folder)
    rows = [row for row in rows if row.control == "none"]
    table: dict[str, dict[str, float]] = {}
    lines = []
    for row in rows:
        step = row.policy if training_step is None else str(training_step)
        saved = f"steps_{step}_pytorch_model" if step.isdecimal() else step
        task = row.task.replace("/", "-")
        version = "" if re.search(r"-v\d+$", task) else "-v0"
        lines.append(f"{saved}_infer_{task}{version}.log.run1 → Average success: {row.success_rate:.6g}\n")
        table.setdefault(step, {})[task] = row.success_rate
    for file in (folder / "raw_success.txt", folder / "success_summary" / "raw_success.txt"):
        with atomic_write(file) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
    tasks = list(dict.fromkeys(task for rates in table.values() for task in rates))
    columns = {step: [*(rates.get(task) for task in tasks), fmean(rates.values())] for step, rates in table.items()}
    csv_file = folder / "success_summary" / "success_summary.csv"
    with atomic_write(csv_file) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *tasks, _AVERAGE])
        for step, rates in columns.items():
            writer.writerow([step, *("" if rate is None else f"{rate:.6g}" for rate in rates)])
    if can_plot():
        _plot_over_steps([*tasks, _AVERAGE], columns, folder / "success_summary" / "success_plot.png")


def _plot_over_steps(names: Sequence[str], columns: Mapping[str, Sequence[float | None]], path: Path) -> None:
    """Plot success rates over training steps, a line per task and a thick one for their average."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [int(step) if step.isdecimal() else step for step in columns]
    if not all(isinstance(step, int) for step in steps):
        steps = list(columns)
    for number, name in enumerate(names):
        rates = [math.nan if rates[number] is None else rates[number] for rates in columns.values()]
        average = name == _AVERAGE
        style = {"color": "tab:red", "linewidth": 2} if average else {"linestyle": "--", "alpha": 0.6}
        axes.plot(steps, rates, marker="." if len(steps) < 20 else "", label=name, **style)
    axes.set(xlabel="training step", ylabel="success rate", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    if len(names) <= 12:
        axes.legend(fontsize=7)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
