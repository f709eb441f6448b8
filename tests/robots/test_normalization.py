"""Each normalisation mode, both ways, and statistics that don't fit."""

import numpy as np
import pytest

from hf_vla.robots.normalization import MODES, Normalizer
from hf_vla.robots.robot_types import ROBOTS, modes_for

STATISTICS = {
    "q01": [-1.0, 2.0],
    "q99": [3.0, 2.0],
    "min": [-2.0, 5.0],
    "max": [2.0, 5.0],
    "mean": [1.0, 0.5],
    "std": [2.0, 0.0],
}


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("q99", [-1.0, 0.0], [-1.0, 0.0]),  # the second dimension is degenerate and passes through
        ("q99", [3.0, 7.0], [1.0, 2.2]),  # and is clipped like every other
        ("q99", [100.0, -0.5], [2.2, -0.5]),
        ("q99", [-100.0, 0.0], [-2.2, 0.0]),
        ("min_max", [-2.0, 123.0], [-1.0, 0.0]),  # a constant dimension goes in as 0
        ("min_max", [4.0, 5.0], [2.0, 0.0]),  # unclipped
        ("mean_std", [5.0, 9.0], [2.0, 0.0]),
        ("binary", [0.5, 0.51], [0.0, 1.0]),
        ("none", [7.0, -7.0], [7.0, -7.0]),
    ],
)
def test_going_in(mode, given, expected):
    result = Normalizer(STATISTICS, mode).normalize(given)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("q99", [-1.0, 0.7], [-1.0, 2.0]),  # degenerate: q01
        ("q99", [2.0, -0.7], [5.0, 2.0]),  # unclipped
        ("min_max", [0.0, 0.3], [0.0, 5.0]),
        ("mean_std", [-1.0, 3.0], [-1.0, 0.5]),
        ("binary", [0.7, 0.2], [1.0, 0.0]),
        ("none", [7.0, -7.0], [7.0, -7.0]),
    ],
)
def test_coming_out(mode, given, expected):
    result = Normalizer(STATISTICS, mode).unnormalize(given)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_there_and_back(mode):
    normalizer = Normalizer({name: values[:1] for name, values in STATISTICS.items()}, mode)
    given = np.array([[0.0], [1.0]] if mode == "binary" else [[-0.9], [0.3], [1.8]], dtype=np.float32)
    np.testing.assert_allclose(normalizer.unnormalize(normalizer.normalize(given)), given, rtol=1e-5, atol=1e-6)


def test_one_mode_a_dimension_and_any_leading_shape():
    normalizer = Normalizer(STATISTICS, ["min_max", "binary"])
    given = np.zeros((3, 4, 2)) + [2.0, 1.0]
    np.testing.assert_allclose(normalizer.normalize(given), np.ones((3, 4, 2)))


@pytest.mark.parametrize(
    ("statistics", "modes", "message"),
    [
        (STATISTICS, "q98", "unknown normalisation mode 'q98' for the arm; known are q99, min_max"),
        (STATISTICS, ["q99"], "1 normalisation modes for the 2 dimensions of the arm"),
        ({}, "q99", "statistics of the arm are empty"),
        ({"q01": [0.0], "q99": [1.0, 2.0]}, "q99", r"different lengths: \[1, 2\]"),
        ({"min": [0.0], "max": [1.0]}, "q99", "needs the statistics q01, q99"),
        ({"q01": [np.nan], "q99": [1.0]}, "q99", "NaN or infinite"),
    ],
)
def test_bad_statistics(statistics, modes, message):
    with pytest.raises(ValueError, match=message):
        Normalizer(statistics, modes, "arm")


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0, 3.0]], 1.0])
def test_bad_shapes(values):
    normalizer = Normalizer(STATISTICS, "q99", "arm")
    for way in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(ValueError, match="got arm of shape .* last dimension must be 2"):
            way(values)


def test_modes_of_known_robots():
    statistics = {
        "action": {"mean": [0.0] * 7, "mask": [True] * 6 + [False]},
        "state": {"mean": [0.0] * 8},
    }
    assert modes_for("oxe_bridge", statistics) == {
        "action": ["q99"] * 6 + ["binary"],
        "state": ["q99"] * 7 + ["binary"],
    }
    assert modes_for("libero_franka", {"action": {"mean": [0.0] * 7}}) == {"action": ["min_max"] * 7}
    assert modes_for("my_robot", statistics) is None
    assert {robot.action_mode for robot in ROBOTS.values()} <= set(MODES)
