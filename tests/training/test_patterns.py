"""Regular expressions over parameter names: which parameters they name, and what a pattern that names none says."""

import pytest
from torch import nn

from hf_vla.training.patterns import freeze, learning_rates, matching_parameters


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.vlm = nn.ModuleDict({"visual": nn.Linear(2, 2), "language_model": nn.Linear(2, 2)})
        self.action_head = nn.Linear(2, 2)


def test_a_pattern_is_searched_in_the_whole_name():
    assert matching_parameters(Tiny(), "visual", "x") == {"vlm.visual.weight", "vlm.visual.bias"}
    assert matching_parameters(Tiny(), r"^vlm\..*bias$", "x") == {"vlm.visual.bias", "vlm.language_model.bias"}


def test_first_match_wins_and_the_rest_gets_the_base_rate():
    rates = learning_rates(Tiny(), 1.0, {"visual": 2.0, "^vlm": 3.0})
    assert rates["vlm.visual.weight"] == 2.0
    assert rates["vlm.language_model.bias"] == 3.0
    assert rates["action_head.weight"] == 1.0


def test_frozen_parameters_are_exactly_those_named():
    model = Tiny()
    frozen = freeze(model, ["visual", "action_head.bias"])
    assert frozen == {"vlm.visual.weight", "vlm.visual.bias", "action_head.bias"}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert set(learning_rates(model, 1.0, {})) == {n for n, _ in model.named_parameters()} - frozen


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("action_model", "did you mean action_head"),
        ("vlm.visul", "did you mean vlm.visual"),
        ("zzz", "modules are vlm, action_head"),
        ("(", "no valid regular expression"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(pattern, message):
    with pytest.raises(ValueError, match=message):
        matching_parameters(Tiny(), pattern, "freeze_modules")


def test_freezing_everything_is_an_error():
    with pytest.raises(ValueError, match="leave something to train"):
        freeze(Tiny(), ["."])
