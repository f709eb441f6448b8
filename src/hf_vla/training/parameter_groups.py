"""The optimizer's parameter groups: which parameters decay, and a group for each learning rate."""

import re

import torch
from torch import nn

from .patterns import DEFAULT_GROUP

# Learned tables that are no nn.Embedding: DINOv2's cls_token and position_embeddings, a vision tower's pos_embed, …
_TABLE = re.compile(r"(^|_)(tokens?|quer(y|ies)|embed|embeddings?|positions?|pos|latents?)$")
_NEVER = re.compile(r"bias|norm|scale", re.IGNORECASE)


def decayed_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay is for: the matrices and kernels that multiply activations.

    Biases, norms and scales are not (anything of one dimension), nor are embeddings, position tables and query tokens: their
    rows are looked up, and decay would shrink those that a batch doesn't use. transformers' own rule goes by names: it decays
    tables, and norms that are called otherwise, such as Qwen2.5-VL's `norm1`.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()}
    return [
        name
        for name, parameter in model.named_parameters()
        if _dimensions(parameter) > 1 and id(parameter) not in tables and _multiplies(name)
    ]


def _multiplies(name: str) -> bool:
    own = name.rpartition(".")[2]
    of_tokens = "trainable_tokens_delta" in name  # PEFT's rows of an embedding
    return not (of_tokens or _TABLE.search(own) or _NEVER.search(own))


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, where DeepSpeed's ZeRO-3 keeps only a flat piece of it here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, wherever its pieces are."""
    return getattr(parameter, "ds_numel", parameter.numel())


def split_by_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, groups: dict[str, str], rates: dict[str, float]
) -> list[str]:
    """Split the optimizer's parameter groups so that each holds parameters of one learning rate, and set the rates.

    Args:
        groups: trainable parameter -> group, as `rate_groups` gives them.
        rates: group -> learning rate; the default group keeps what the optimizer has.

    Returns:
        The group of each of the optimizer's parameter groups, the default one first.

    Raises:
        ValueError: the optimizer makes its own groups, which can't be split.
    """
    of_parameter = {id(p): groups[name] for name, p in model.named_parameters() if name in groups}
    given = optimizer.param_groups
    if any(id(parameter) not in of_parameter for group in given for parameter in group["params"]):
        if not rates:
            return [DEFAULT_GROUP] * len(given)
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} makes parameter groups of its own, which takes no "
            "module_learning_rates; choose another optim, or take them out"
        )
    optimizer.param_groups = []
    names = []
    for name in (DEFAULT_GROUP, *rates):
        for group in given:
            if parameters := [p for p in group["params"] if of_parameter[id(p)] == name]:
                rate = {"lr": rates[name]} if name in rates else {}
                optimizer.add_param_group({**group, "params": parameters, **rate})
                names.append(name)
    return names


__all__ = ["decayed_parameters", "numel", "split_by_rate"]
