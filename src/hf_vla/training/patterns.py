"""Regular expressions over a model's parameter names, checked: a pattern that matches nothing is an error.

In a model with an adapter, names are read as in the policy without it, see [`~hf_vla.checkpoints.adapted_modules.plain_name`].
"""

import re
from collections.abc import Iterable

from torch import nn

from ..checkpoints.adapted_modules import plain_name
from ..utils.suggestions import did_you_mean

#: the group of the parameters that no pattern of `module_learning_rates` matches
DEFAULT_GROUP = "default"


def matching_parameters(model: nn.Module, pattern: str, option: str) -> set[str]:
    """Names of the parameters in which `re.search(pattern, plain_name(name))` finds something.

    Args:
        option: the setting that holds the pattern, for the error.

    Raises:
        ValueError: no valid regular expression, or it matches no parameter; the message names the nearest modules.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option}: {pattern!r} is no valid regular expression: {error}") from None
    names = {name for name, _ in model.named_parameters() if regex.search(plain_name(name))}
    if not names:
        raise ValueError(f"{option}: {pattern!r} matches no parameter{nearest(model, pattern)}")
    return names


def nearest(model: nn.Module, pattern: str) -> str:
    """Return the end of an error: the modules whose names are most like `pattern`, or what there is."""
    parameters = [plain_name(name).split(".")[:-1] for name, _ in model.named_parameters()]
    modules = list(dict.fromkeys(".".join(parts[:i]) for parts in parameters for i in range(1, len(parts) + 1)))
    plain = re.sub(r"[\\^$().*+?\[\]{}|]+", ".", pattern).strip(".")
    known = f"modules are {', '.join(name for name in modules if '.' not in name)} and what is below them"
    return did_you_mean(plain, modules, known, cutoff=0.5)


def freeze(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Stop training all parameters that match; their names. Everything frozen is a ValueError."""
    frozen = set().union(*(matching_parameters(model, pattern, "freeze_modules") for pattern in patterns))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze_modules {list(patterns)} freezes every parameter; leave something to train")
    return frozen


def rate_groups(model: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Each trainable parameter's group: the first pattern of `module_learning_rates` that matches it, else "default".

    Raises:
        ValueError: a pattern that can have no effect, because all that it matches is frozen or taken by earlier ones.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[str, str] = {}
    for pattern in patterns:
        if pattern == DEFAULT_GROUP:
            raise ValueError(
                f"module_learning_rates: {DEFAULT_GROUP!r} is what the group of all other parameters is called; write "
                f"'({DEFAULT_GROUP})' for a pattern, or set learning_rate for that group"
            )
        matched = matching_parameters(model, pattern, "module_learning_rates")
        if not (matched := matched & trainable):
            raise ValueError(
                f"module_learning_rates: all that {pattern!r} matches is frozen, so that its rate would have no effect; take "
                "it out, or narrow what is frozen (freeze_modules)"
            )
        if not (left := matched - groups.keys()):
            earlier = ", ".join(repr(p) for p in dict.fromkeys(groups.values()) if p in {groups[n] for n in matched})
            raise ValueError(
                f"module_learning_rates: all that {pattern!r} matches has its rate from {earlier} before it, and the first "
                "match wins; put the narrower pattern first, or take one out"
            )
        groups |= dict.fromkeys(left, pattern)
    return {name: groups.get(name, DEFAULT_GROUP) for name, _ in model.named_parameters() if name in trainable}


def learning_rates(model: nn.Module, base: float, rates: dict[str, float]) -> dict[str, float]:
    """Each trainable parameter's learning rate: that of the first pattern that matches, else `base`."""
    return {name: rates.get(group, base) for name, group in rate_groups(model, rates).items()}
