"""The text of the prompt: the state as bins, and templates (StarVLA's semantics, section 3; the state text follows pi-0.5)."""

import numpy as np

ACTION_PLACEHOLDER = "🔍"
NUM_STATE_BINS = 256
_EDGES = np.linspace(-1, 1, NUM_STATE_BINS + 1)[:-1]


def state_bins(state) -> list[int]:
    """A normalised state (S,) as 256 bins over [-1, 1]: below -1 gives -1; from 0.9921875 on, and NaN, 255."""
    return (np.digitize(np.asarray(state), _EDGES) - 1).tolist()


def add_state(instruction: str, state) -> str:
    """ "{instruction} [STATE] {bins} [ACTION]" of a normalised state (S,)."""
    return f"{instruction} [STATE] {' '.join(map(str, state_bins(state)))} [ACTION]"


def add_action_placeholders(instruction: str, action_horizon: int) -> str:
    """The instruction and, after it, one placeholder for each action of the chunk (OpenVLA-OFT's parallel decoding)."""
    placeholders = ACTION_PLACEHOLDER * action_horizon
    return f"{instruction} Please predict the next {action_horizon} robot actions: <action>{placeholders}<action>."


def apply_template(template: str | None, instruction: str) -> str:
    """`template` with {instruction} replaced; the instruction itself where there is no template."""
    return instruction if template is None else template.replace("{instruction}", instruction)
