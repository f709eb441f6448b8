"""The prompt's text: state bins, action placeholders, template."""

import numpy as np
import pytest

from hf_vla.processing.prompt import add_action_placeholders, add_state, apply_template, state_bins


@pytest.mark.parametrize(
    ("value", "bin"),
    [(-5, -1), (-1.0001, -1), (-1, 0), (-0.9922, 0), (-0.9921, 1), (0, 128), (0.9921, 254), (0.9921875, 255)]
    + [(1, 255), (7, 255), (np.nan, 255)],
)
def test_state_bins(value, bin):
    assert state_bins([value]) == [bin]


def test_state_text():
    assert add_state("open the drawer", [-2.0, 0.0, 1.0]) == "open the drawer [STATE] -1 128 255 [ACTION]"


def test_action_placeholders():
    text = add_action_placeholders("open", 3)
    assert text == "open Please predict the next 3 robot actions: <action>🔍🔍🔍<action>."


def test_template():
    assert apply_template(None, "open") == "open"
    assert apply_template("", "open") == ""  # StarVLA wraps with an empty template too
    assert (
        apply_template("Your task is {instruction}. {instruction}!", "open {x}") == "Your task is open {x}. open {x}!"
    )
