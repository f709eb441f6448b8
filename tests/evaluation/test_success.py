"""The success rate of a policy that is being trained."""

import pytest
from toy import SightedPolicy, ToyEnvironment

from hf_vla.evaluation import environments
from hf_vla.evaluation.success import SuccessRate


@pytest.fixture
def toy_simulator(monkeypatch):
    monkeypatch.setattr(environments, "_REGISTERED", {"toy": ToyEnvironment})


def test_the_success_rate_of_a_model_in_a_simulator(toy_simulator, monkeypatch):
    """The same unseen episodes each time, every task under its name."""
    made = []

    class Model(SightedPolicy):
        def __init__(self, model, processor, key):
            super().__init__()
            made.append(self)
            assert (model, processor, key) == ("model", "processor", "point")

    monkeypatch.setattr("hf_vla.inference.policy.Policy", Model)
    rate = SuccessRate("toy", ["reach", "touch", "reach"], episodes=3, unnorm_key="point", max_steps=40)
    assert rate.metric_names == ["success", "success/reach", "success/touch"]
    assert rate("model", "processor") == {"success": 1.0, "success/reach": 1.0, "success/touch": 1.0}
    assert made[0].seeds == [1_000_000, 1_000_001, 1_000_002] * 2
    short = SuccessRate("toy", ["reach"], episodes=4, unnorm_key="point", max_steps=5)
    assert short("model", "processor")["success"] == 0.75  # the targets are 3, 4, 5 and 6 steps away
    with pytest.raises(ValueError, match="unknown task 'jump'"):
        SuccessRate("toy", ["jump"])
    with pytest.raises(ValueError, match="toy does not take the setting 'colour'"):
        SuccessRate("toy", ["reach"], colour="red")
