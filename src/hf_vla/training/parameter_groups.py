"""Which parameters are trained, at which learning rate, and with weight decay: regular expressions, frozen modules, groups.

Patterns are checked: one that matches no parameter is an error. In a model with an adapter, parameter names are read as in the
policy without it, see [`~hf_vla.checkpoints.adapted_modules.plain_name`].
"""

import re
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..checkpoints.adapted_modules import plain_name
from ..utils.suggestions import did_you_mean

#: the group of the parameters that no pattern of `module_learning_rates` matches
DEFAULT_GROUP = "default"
# Learned tables that are not an nn.Embedding: DINOv2's cls_token and position_embeddings, a vision tower's pos_embed, …
_TABLE = re.compile(r"(^|_)(tokens?|quer(y|ies)|embed|embeddings?|positions?|pos|latents?)$")
_NEVER_DECAYED = re.compile(r"bias|norm|scale", re.IGNORECASE)


# ---------------------------------------------------------------------------------------------------------------- patterns


def matching_parameters(model: nn.Module, pattern: str, option: str) -> set[str]:
    """Return the names of the parameters in which `re.search(pattern, plain_name(name))` finds a match.

    Args:
        option: the setting that holds the pattern, for the error.

    Raises:
        ValueError: the regular expression is invalid or matches no parameter; the message names the nearest modules.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option}: {pattern!r} is not a valid regular expression: {error}") from None
    names = {name for name, _ in model.named_parameters() if regex.search(plain_name(name))}
    if not names:
        raise ValueError(f"{option}: {pattern!r} matches no parameter{suggest_modules(model, pattern)}")
    return names


def suggest_modules(model: nn.Module, pattern: str) -> str:
    """Return the end of an error: the modules whose names are closest to `pattern`, else the top-level modules."""
    parameters = [plain_name(name).split(".")[:-1] for name, _ in model.named_parameters()]
    modules = list(dict.fromkeys(".".join(parts[:i]) for parts in parameters for i in range(1, len(parts) + 1)))
    plain = re.sub(r"[\\^$().*+?\[\]{}|]+", ".", pattern).strip(".")
    known = f"modules are {', '.join(name for name in modules if '.' not in name)} and what is below them"
    return did_you_mean(plain, modules, known, cutoff=0.5)


# ---------------------------------------------------------------------------------------------------------- frozen modules


def freeze(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Exclude all matching parameters from training, and return their names.

    Raises:
        ValueError: a pattern that matches nothing, or nothing would be left to train.
    """
    frozen = set().union(*(matching_parameters(model, pattern, "freeze_modules") for pattern in patterns))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze_modules {list(patterns)} freezes every parameter; leave something to train")
    return frozen


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module whose parameters are all frozen, and all modules inside it: a frozen block's Dropout too.

    A module without parameters inside a trained one belongs to the latter.
    """
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in model.children():
            yield from frozen_modules(child)
    elif parameters:
        yield from model.modules()


class FrozenInEval:
    """Keeps a model's frozen modules in evaluation mode while the rest trains: no dropout, no running statistics.

    The modules are looked up once: training does not unfreeze any.
    """

    def __init__(self):
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []

    def apply(self, model: nn.Module) -> None:
        """Set the frozen modules' mode; call it after each `model.train()`."""
        if self._model is not model:
            self._model, self._modules = model, list(frozen_modules(model))
        for module in self._modules:
            # Such a layer recomputes its activations in training mode only, which saves as much memory if it is frozen
            # between trained ones. Its own mode has no other effect: dropout is in the modules that it holds.
            module.training = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


# ------------------------------------------------------------------------------------------ learning rates and weight decay


def rate_groups(model: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """Return each trainable parameter's group: the first pattern of `module_learning_rates` that matches, else "default".

    Raises:
        ValueError: a pattern without effect, because all that it matches is frozen or taken by earlier patterns.
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
                f"module_learning_rates: all that {pattern!r} matches is frozen, so its rate would have no effect; take "
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


def decayed_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters that get weight decay: the matrices and kernels that multiply activations.

    Biases, norms and scales (anything of one dimension) do not, nor do embeddings, position tables and query tokens: their
    rows are looked up, and decay would shrink those that a batch doesn't use. transformers' own rule goes by names: it decays
    tables, and norms with unusual names, such as Qwen2.5-VL's `norm1`.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if _num_dimensions(parameter) > 1 and id(parameter) not in tables and _multiplies_activations(name)
    ]


def split_by_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, groups: dict[str, str], rates: dict[str, float]
) -> list[str]:
    """Split the optimizer's parameter groups so that each holds parameters of one learning rate, and set the rates.

    Args:
        groups: trainable parameter -> group, as `rate_groups` returns them.
        rates: group -> learning rate; the default group keeps the optimizer's.

    Returns:
        The group of each of the optimizer's parameter groups, the default one first.

    Raises:
        ValueError: the optimizer makes its own groups, which can't be split.
    """
    group_of = {id(p): groups[name] for name, p in model.named_parameters() if name in groups}
    given = optimizer.param_groups
    if any(id(parameter) not in group_of for group in given for parameter in group["params"]):
        if not rates:
            return [DEFAULT_GROUP] * len(given)
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} makes parameter groups of its own, which excludes "
            "module_learning_rates; choose another optim, or take them out"
        )
    optimizer.param_groups = []
    names = []
    for name in (DEFAULT_GROUP, *rates):
        for group in given:
            if parameters := [p for p in group["params"] if group_of[id(p)] == name]:
                rate = {"lr": rates[name]} if name in rates else {}
                optimizer.add_param_group({**group, "params": parameters, **rate})
                names.append(name)
    return names


def numel(parameter: nn.Parameter) -> int:
    """Return the number of elements of the whole parameter, even if DeepSpeed's ZeRO-3 has sharded it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _num_dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, of which ZeRO-3 keeps only a flat piece here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _multiplies_activations(name: str) -> bool:
    own = name.rpartition(".")[2]
    of_tokens = "trainable_tokens_delta" in name  # PEFT's rows of an embedding
    return not (of_tokens or _TABLE.search(own) or _NEVER_DECAYED.search(own))


__all__ = [
    "DEFAULT_GROUP",
    "FrozenInEval",
    "decayed_parameters",
    "freeze",
    "frozen_modules",
    "matching_parameters",
    "numel",
    "rate_groups",
    "split_by_rate",
    "suggest_modules",
]
