"""The text of the prompt: the state as bins, and templates (StarVLA's semantics, section 3; the state text follows pi-0.5)."""

import numpy as np

ACTION_PLACEHOLDER = "🔍"
NUM_STATE_BINS = 256
_EDGES = np.linspace(-1, 1, NUM_STATE_BINS + 1)[:-1]


def state_bins(state) -> list[int]:
    """Return a normalised state (S,) as 256 bins over [-1, 1]: below -1 gives -1; from 0.9921875 on, and NaN, 255."""
    return (np.digitize(np.asarray(state), _EDGES) - 1).tolist()


def add_state(instruction: str, state) -> str:
    """Return "{instruction} [STATE] {bins} [ACTION]" with the bins of a normalised state (S,)."""
    return f"{instruction} [STATE] {' '.join(map(str, state_bins(state)))} [ACTION]"


def add_action_placeholders(instruction: str, action_horizon: int | None, number: int | None = None) -> str:
    """Return the instruction followed by `number` placeholders, by default one per action of the chunk (OpenVLA-OFT).

    Raises:
        ValueError: `action_horizon`, the processor's setting, is None.
    """
    if action_horizon is None:
        raise ValueError("this processor's action_horizon is not set; it is the policy's, and part of the prompt")
    placeholders = ACTION_PLACEHOLDER * (number or action_horizon)
    return f"{instruction} Please predict the next {action_horizon} robot actions: <action>{placeholders}<action>."


def action_placeholder_id(tokenizer) -> int:
    """Return the first token id of the placeholder in a backbone's tokenizer: StarVLA finds placeholders in the prompt by it."""
    return tokenizer(ACTION_PLACEHOLDER, add_special_tokens=False)["input_ids"][0]


def apply_template(template: str | None, instruction: str) -> str:
    """Return `template` with {instruction} replaced, or the instruction itself if there is no template."""
    return instruction if template is None else template.replace("{instruction}", instruction)
