"""Write the results of an evaluation as a table and a figure, success rates with their confidence intervals."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

from hf_vla.evaluation.rollout import EpisodeResult
from hf_vla.utils.files import atomic_write

__all__ = ["SummaryRow", "plot_summary", "summarize", "wilson_interval", "write_summary"]


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
        control: "none" for the policy itself, else the control: "untrained" (random weights) or "blind" (images
            replaced by a constant).
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


def summarize(policy: str, env: str, task: str, results: Sequence[EpisodeResult], control: str = "none") -> SummaryRow:
    """Summarize the episodes of one policy on one task as a row.

    Raises:
        ValueError: there are no episodes.
    """
    successes = sum(result.success for result in results)
    low, high = wilson_interval(successes, len(results))
    return SummaryRow(
        policy=policy,
        env=env,
        task=task,
        episodes=len(results),
        successes=successes,
        success_rate=successes / len(results),
        mean_length=fmean(result.length for result in results),
        wilson_low=low,
        wilson_high=high,
        control=control,
    )


def write_summary(rows: Sequence[SummaryRow], path: str | Path) -> Path:
    """Write the rows as a CSV file, atomically, with the fields of `SummaryRow` as columns."""
    path = Path(path)
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(SummaryRow)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in values.items()})
    return path


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
