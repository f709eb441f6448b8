"""What becomes of chunks: the rule's fields, and the means over chunks that overlap, by hand."""

import math
import pickle

import numpy as np
import pytest

from hf_vla.inference import ChunkRule
from hf_vla.inference.chunk_rules import adaptive_mean, temporal_mean


def test_acts_weights_are_largest_for_the_oldest():
    predictions = [np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.array([4.0, 1.0])]
    w = [1, math.exp(-0.5), math.exp(-1)]
    expected = [(w[0] + 2 * w[1] + 4 * w[2]) / sum(w), w[2] / sum(w)]
    np.testing.assert_allclose(temporal_mean(predictions, decay=0.5), expected, rtol=1e-12)
    assert temporal_mean(predictions, decay=0.0).tolist() == pytest.approx([7 / 3, 1 / 3])
    assert temporal_mean(predictions, decay=-50.0).tolist() == pytest.approx([4, 1])  # the newest alone
    np.testing.assert_array_equal(temporal_mean(predictions), temporal_mean(predictions, 0.01))
    assert temporal_mean(predictions[:1]).tolist() == [1, 0]


def test_starvlas_weights_grow_with_agreement():
    # (1, 0) is orthogonal to the newest: weights exp(0) and exp(0.1).
    weight = math.exp(0.1)
    mean = adaptive_mean([np.array([1.0, 0.0]), np.array([0.0, 1.0])], alpha=0.1)
    np.testing.assert_allclose(mean, [1 / (1 + weight), weight / (1 + weight)], rtol=1e-6)
    # The same direction: equal weights. A newest of zeros agrees with nothing, and nobody divides by zero.
    np.testing.assert_allclose(adaptive_mean([np.array([1.0, 0.0]), np.array([2.0, 0.0])]), [1.5, 0], rtol=1e-6)
    assert adaptive_mean([np.array([1.0, 0.0]), np.zeros(2)]).tolist() == [0.5, 0]
    # The opposite: exp(-0.5) and exp(0.5).
    a, b = math.exp(-0.5), math.exp(0.5)
    np.testing.assert_allclose(adaptive_mean([-np.ones(1), np.ones(1)], alpha=0.5), [(b - a) / (a + b)], rtol=1e-6)


def test_fields():
    assert ChunkRule("temporal_ensemble").to_dict() == {"mode": "temporal_ensemble", "decay": 0.01}
    assert ChunkRule("adaptive_ensemble", length=7).to_dict() == {
        "mode": "adaptive_ensemble",
        "length": 7,
        "alpha": 0.1,
    }
    assert ChunkRule().to_dict() == {"mode": "open_loop"}
    rule = ChunkRule.from_dict({"mode": "real_time_chunking", "execute": 4, "inference_delay": 3})
    assert rule == ChunkRule("real_time_chunking", 4, 3) == pickle.loads(pickle.dumps(rule))
    assert ChunkRule.from_dict(ChunkRule("adaptive_ensemble").to_dict()) == ChunkRule("adaptive_ensemble")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "openloop"}, "unknown chunk mode 'openloop'; possible: open_loop,"),
        ({"execute": 0}, "execute is 0; give a whole number from 1"),
        ({"execute": True}, "execute is True; give a whole number"),
        ({"inference_delay": -1}, "inference_delay is -1; give a whole number from 0"),
        ({"inference_delay": 1.5}, "inference_delay is 1.5"),
        ({"mode": "adaptive_ensemble", "length": 0}, "length is 0; give a whole number from 1"),
        ({"alpha": 0.1}, "alpha belongs to the chunk mode adaptive_ensemble, and the mode is open_loop"),
        ({"mode": "adaptive_ensemble", "decay": 0.1}, "decay belongs to the chunk mode temporal_ensemble"),
        ({"mode": "temporal_ensemble", "decay": math.inf}, "decay is inf; give a number"),
        ({"mode": "adaptive_ensemble", "alpha": "much"}, "alpha is 'much'; give a number"),
        ({"exectue": 3}, "unknown key 'exectue' in a chunk rule; possible: execute"),
        (8, "a chunk rule is 8; give a mapping"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ChunkRule.from_dict(given)


def test_how_often_a_policy_is_asked():
    assert [ChunkRule().period(horizon, 0) for horizon in (2, 5, 8)] == [2, 5, 5]
    assert [ChunkRule().period(8, delay) for delay in range(5)] == [5, 5, 5, 5, 4]
    assert [ChunkRule("temporal_ensemble").period(8, delay) for delay in range(5)] == [1, 1, 1, 1, 1]
    assert ChunkRule("real_time_chunking", 4).period(8, 4) == 4
    with pytest.raises(ValueError, match="set execute_steps to 8 at most"):
        ChunkRule(execute=9).period(8, 0)
    with pytest.raises(
        ValueError, match="every 5 steps and arrives 5 steps later, so it must have 10 actions, but .* 8"
    ):
        ChunkRule().period(8, 5)
    with pytest.raises(ValueError, match="must have 9 actions"):
        ChunkRule(execute=6).period(8, 3)
