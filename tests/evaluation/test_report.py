"""Success rates with intervals, as a table and a figure."""

import csv

import numpy as np
import pytest
from PIL import Image

from hf_vla.evaluation.report import plot_summary, summarize, wilson_interval, write_summary
from hf_vla.evaluation.rollout import Episode, EpisodeResult


def results(successes, episodes):
    return [EpisodeResult(Episode("p", "e", seed), seed < successes, 10 + seed) for seed in range(episodes)]


# Reference values: statsmodels.stats.proportion.proportion_confint(method="wilson").
@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(20, 20, 0.838875, 1.0), (0, 20, 0.0, 0.161125), (10, 20, 0.299298, 0.700702), (1, 3, 0.061492, 0.792340)],
)
def test_wilson_interval(successes, episodes, low, high):
    assert np.allclose(wilson_interval(successes, episodes), (low, high), atol=1e-5)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_no_rate(successes, episodes):
    with pytest.raises(ValueError, match="no success rate"):
        wilson_interval(successes, episodes)


def test_table(tmp_path):
    rows = [
        summarize("mine", "metaworld", "drawer-open", results(3, 4)),
        summarize("mine (blind)", "metaworld", "drawer-open", results(0, 4), control="blind"),
    ]
    path = write_summary(rows, tmp_path / "new" / "success_summary.csv")
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [
        "policy", "env", "task", "episodes", "successes", "success_rate", "mean_length", "wilson_low", "wilson_high",
        "control",
    ]  # fmt: skip
    assert [row["control"] for row in read] == ["none", "blind"]
    assert (read[0]["episodes"], read[0]["successes"], float(read[0]["success_rate"])) == ("4", "3", 0.75)
    assert float(read[0]["mean_length"]) == 11.5
    assert float(read[0]["wilson_low"]) < 0.75 < float(read[0]["wilson_high"])
    assert [item.name for item in path.parent.iterdir()] == ["success_summary.csv"]


@pytest.mark.parametrize("episodes", range(1, 40))
def test_ends_are_exact(episodes):
    assert wilson_interval(0, episodes)[0] == 0.0
    assert wilson_interval(episodes, episodes)[1] == 1.0


def test_figure_shows_the_rates(tmp_path):
    def colours(successes):
        rows = [summarize("mine", "metaworld", "drawer-open", results(successes, 20))]
        path = plot_summary(rows, tmp_path / f"{successes}.png")
        image = np.asarray(Image.open(path).convert("RGB")).astype(int)
        return (image[..., 2] - image[..., 0] > 60).sum()

    none, half, full = (colours(n) for n in (0, 10, 20))
    assert full - none > 1.8 * (half - none) > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "10.png", "20.png"]
