"""Which evaluations differ by more than noise: paired by episode."""

import csv
import random
import re

import pytest

from hf_vla.commands.compare import main
from hf_vla.evaluation.comparison import compare, mcnemar, paired_interval, read_policies
from hf_vla.evaluation.results import EpisodeKey, Outcome, ResultsFolder

PROTOCOL = {"env": "toy", "environment": {"max_steps": 5}, "execute_steps": 8}


def evaluation(folder, solved, episodes=40, name="mine", step=None, control="none", task="reach", **protocol):
    with ResultsFolder(folder, {**PROTOCOL, **protocol}, {"policy": name, "training_step": step}) as results:
        for seed in range(episodes):
            results.add(EpisodeKey(control, task, seed), Outcome(seed in solved, 5))
    return folder


# Reference values: scipy.stats.binomtest(only_first, only_first + only_second).pvalue.
@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 0, 1.0), (9, 1, 0.021484375), (0, 6, 0.03125), (20, 7, 0.0191572904586792)],
)
def test_mcnemar(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p) == mcnemar(only_second, only_first)


def test_the_interval_covers_the_true_difference():
    generator = random.Random(0)
    covered = 0
    for _ in range(2000):
        draws = [generator.random() for _ in range(30)]
        first, second = sum(u < 0.3 for u in draws), sum(u > 0.9 for u in draws)  # a true difference of 0.2
        low, high = paired_interval(first, second, 30)
        covered += low <= 0.2 <= high
    assert 0.94 < covered / 2000 < 0.99
    low, high = paired_interval(0, 0, 10)
    assert -0.3 < low < 0 < high == -low


def test_what_is_noise_and_what_is_more(tmp_path):
    folders = [
        evaluation(tmp_path / "a", range(0, 38), name="a"),
        evaluation(tmp_path / "b", range(0, 20), name="b"),
        evaluation(tmp_path / "c", range(2, 39), name="c"),
    ]
    ab, ac, bc = compare(read_policies(folders))
    assert (ab.first, ab.second, ab.episodes, ab.only_first, ab.only_second) == ("a", "b", 40, 18, 0)
    assert ab.difference == pytest.approx(18 / 40) and ab.low < ab.difference < ab.high
    # The smallest of three p-values counts three times, the largest once.
    assert ab.p_value == 2 / 2**18 and ab.adjusted_p_value == 3 * ab.p_value
    assert ab.is_significant and bc.is_significant and not ac.is_significant
    assert (ac.only_first, ac.only_second, ac.p_value, ac.adjusted_p_value) == (2, 1, 1.0, 1.0)


def test_only_common_episodes_count(tmp_path):
    folders = [evaluation(tmp_path / "a", range(10), episodes=10), evaluation(tmp_path / "b", (), episodes=30)]
    (comparison,) = compare(read_policies(folders))
    assert comparison.episodes == 10 and comparison.only_first == 10
    assert (comparison.first, comparison.second) == (f"mine, {tmp_path / 'a'}", f"mine, {tmp_path / 'b'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {"max_steps": 6}}, "environment was {'max_steps': 5} and is now {'max_steps': 6}"),
        ({"env": "other"}, "env was 'toy' and is now 'other'"),
        ({"task": "touch"}, "have no episode in common"),
    ],
)
def test_different_episodes_are_not_compared(tmp_path, change, message):
    folders = [evaluation(tmp_path / "a", range(10)), evaluation(tmp_path / "b", range(10), name="b", **change)]
    with pytest.raises(ValueError, match=message):
        compare(read_policies(folders))


def test_chunks_that_are_executed_in_another_way_are_compared(tmp_path):
    folders = [evaluation(tmp_path / "a", range(10)), evaluation(tmp_path / "b", range(9), execute_steps=1)]
    assert compare(read_policies(folders))[0].difference == pytest.approx(1 / 40)


def test_success_over_training_steps(tmp_path, capsys):
    for step, solved in ((2000, 36), (1000, 20), (500, 0)):
        evaluation(tmp_path / str(step), range(solved), step=step)
    main([*(str(tmp_path / str(step)) for step in (2000, 1000, 500)), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "mine, step 2000 minus mine, step 1000: +40.0 points in 40 episodes" in printed
    assert "more than noise" in printed
    pictures = [tmp_path / "out" / name for name in ("success_summary/success_plot.png", "success_summary.png")]
    assert printed.splitlines()[-1] == f"pictures: {pictures[0]}, {pictures[1]}"
    with open(tmp_path / "out/success_summary/success_summary.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["500", "0", "0"], ["1000", "0.5", "0.5"], ["2000", "0.9", "0.9"]]
    lines = (tmp_path / "out/raw_success.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "steps_500_pytorch_model_infer_reach-v0.log.run1 → Average success: 0"
    with open(tmp_path / "out/comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["is_significant"] for row in rows] == ["True"] * 3 and len(rows[0]) == 13
    assert (tmp_path / "out/success_summary.png").exists()


def test_one_evaluation_is_compared_with_its_controls(tmp_path, capsys):
    evaluation(tmp_path / "a", range(30))
    evaluation(tmp_path / "a", range(3), control="blind")
    main([str(tmp_path / "a")])
    assert "mine minus mine (blind): +67.5 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["a"], "there is only one policy; give two evaluations"),
        (["a", "a"], "an evaluation is given twice"),
        (["a", "nowhere"], "nowhere/evaluation.json is missing: is .* the output of hf-vla eval"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, runs, message):
    evaluation(tmp_path / "a", range(30))
    with pytest.raises(SystemExit):
        main([str(tmp_path / run) for run in runs])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)
