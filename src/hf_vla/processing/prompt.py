"""The text of the prompt: the state as bins, and templates (StarVLA's semantics, section 3; the state text follows pi-0.5)."""

import re
from weakref import WeakKeyDictionary

import numpy as np

ACTION_PLACEHOLDER = "🔍"
#: What instructions may not contain of a framework whose prompts these stand in
STATE_MARKS = ("[STATE]", "[ACTION]")
ACTION_MARKS = ("<action>", ACTION_PLACEHOLDER)
NUM_STATE_BINS = 256
#: How an instruction is followed by what pi*0.6 conditions on (2511.14759)
ADVANTAGE_TEMPLATE = "{instruction} Advantage: {advantage}"
ADVANTAGES = ("positive", "negative")
#: What a tokenizer that is made for a policy should spell in few tokens
ADVANTAGE_TEXTS = [f" Advantage: {advantage}" for advantage in ADVANTAGES]
#: "{name}" and how other template languages write it: "${name}", "{{name}}", "{name!r:>8}"
_FIELD = re.compile(r"\{\{\s*[\w.\[\]]*\s*\}\}|\$?\{\s*[\w.\[\]]*\s*(?:![rsa])?(?::[^{}\s\"']*)?\}")
_RESERVED: WeakKeyDictionary = WeakKeyDictionary()
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


def check_template(template: str | None) -> None:
    """Check that a prompt template has a place for the instruction, and no other.

    Raises:
        ValueError: it is not a text; "{instruction}" is not in it, or something else in braces is, such as "{Instruction}" or
            "{task}", which would be left in the prompt as it is.
    """
    if not isinstance(template, str | None):
        raise ValueError(f"prompt_template is {template!r:.80}; give a text with {{instruction}}, or None")
    if template is None:
        return
    others = [field for field in _FIELD.findall(template) if field != "{instruction}"]
    if others:
        raise ValueError(
            f"prompt_template has {', '.join(dict.fromkeys(others))}: {template!r:.200}; the only thing in braces can be "
            "{instruction}, where the instruction goes"
        )
    if "{instruction}" not in template:
        raise ValueError(
            f"prompt_template has no {{instruction}}: {template!r:.200}; the policy would never be told its instruction. Write "
            "{instruction} where it goes, or leave the template out"
        )


def add_advantage(template: str | None, instruction: str, advantage: str | None) -> str:
    """Return the instruction with its advantage, "positive" or "negative", by the template; None leaves it as it is.

    Raises:
        ValueError: another advantage, or one for a policy that is not told any.
    """
    if advantage is None:
        return instruction
    if template is None:
        raise ValueError(
            f"advantage is {advantage!r:.80}, and this policy was not trained on advantages: its processor has no "
            "advantage_template; leave it out, or train with advantage in the recipe"
        )
    if advantage not in ADVANTAGES:
        raise ValueError(f"advantage is {advantage!r:.80}; possible: {', '.join(ADVANTAGES)}, None")
    return template.replace("{advantage}", advantage).replace("{instruction}", instruction)


def check_advantage_template(template: str | None) -> None:
    """Raise a ValueError unless a template has places for instruction and advantage, or is None."""
    if template is None:
        return
    if not isinstance(template, str) or sorted(_FIELD.findall(template)) != ["{advantage}", "{instruction}"]:
        raise ValueError(
            f"advantage_template is {template!r:.200}; give a text with {{instruction}} and {{advantage}}, each once, such as "
            f"{ADVANTAGE_TEMPLATE!r}, or None"
        )


def reserved_pattern(tokenizer, more: tuple[str, ...] = ()) -> re.Pattern:
    """Return a pattern of the texts that are not text in a prompt: a tokenizer's special tokens, and others.

    Added tokens that are not special count if they look like marks, "<think>" or "[INST]": words and blanks that a tokenizer
    was given are text.
    """
    patterns = _RESERVED.setdefault(tokenizer, {})  # kept: FAST's tokenizer has 2,048 such tokens
    key = (len(tokenizer), more)
    if key not in patterns:
        added = tokenizer.added_tokens_decoder.values()
        tokens = {*tokenizer.all_special_tokens, *more}
        tokens |= {token.content for token in added if token.special or re.fullmatch(r"<.+>|\[.+\]", token.content)}
        alternatives = sorted(filter(str.strip, tokens), key=len, reverse=True)  # the longest that matches is named
        patterns[key] = re.compile("|".join(map(re.escape, alternatives)) or r"(?!)")
    return patterns[key]
