"""The table at the start of a run: what is trained, how fast, and what decays."""

import re
from collections.abc import Iterable

from torch import nn

from ..checkpoints.adapted_modules import plain_name
from .parameter_groups import decayed_parameters, numel
from .patterns import rate_groups

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


#: module, or all layers of a stack together -> learning rate, None where frozen -> names of parameters
_Parts = dict[str, dict[float | None, list[str]]]


def overview(model: nn.Module, learning_rate: float, rates: dict[str, float], weight_decay: float, max_rows=18) -> str:
    """A table of the modules with their parameters, whether they are trained, learning rate and weight decay.

    Modules of 2 % and more are opened until the table is `max_rows` long; the layers of a stack share a row. "0.01 of 98.8 %": the
    weight decay applies to that share of the row's parameters.
    """
    sizes = {name: numel(parameter) for name, parameter in model.named_parameters()}
    groups = rate_groups(model, rates)
    kinds = {name: rates.get(groups[name], learning_rate) if name in groups else None for name in sizes}
    decayed = set(decayed_parameters(model)) if weight_decay else set()

    def parts_of(names: Iterable[str], depth: int) -> _Parts:
        parts: _Parts = {}
        for name in names:
            module = ".".join(_INDEX.sub("*", plain_name(name)).split(".")[:-1][:depth])
            parts.setdefault(module, {}).setdefault(kinds[name], []).append(name)
        return parts

    def open_largest(parts: _Parts) -> _Parts | None:
        """`parts` with the largest that can be opened opened, None where the table would become too long."""
        everything = {module: sum(of_kinds.values(), []) for module, of_kinds in parts.items()}
        size = {module: sum(sizes[name] for name in names) for module, names in everything.items()}
        for module in sorted(parts, key=lambda module: -size[module]):
            inner = parts_of(everything[module], module.count(".") + 2)
            if module.endswith("*") or set(inner) == {module} or size[module] < 0.02 * sum(size.values()):
                continue
            opened: _Parts = {}
            for key in parts:
                opened |= inner if key == module else {key: parts[key]}
            if sum(map(len, opened.values())) <= max_rows:
                return opened
        return None

    parts = parts_of(sizes, 1)
    while opened := open_largest(parts):
        parts = opened

    rows = [("module", "parameters", "trainable", "learning rate", "weight decay")]
    for module, of_kinds in parts.items():
        for rate, names in of_kinds.items():
            total = sum(sizes[n] for n in names)
            share = sum(sizes[n] for n in names if n in decayed) / max(total, 1) if rate is not None else 0
            decay = f"{weight_decay:g} of {100 * share:.1f} %" if share else "-"
            rate = ("no", "-") if rate is None else ("yes", f"{rate:g}")
            rows.append((_label(module, names, of_kinds), human(total), *rate, decay))
    trained = sum(size for name, size in sizes.items() if kinds[name] is not None)
    total = sum(sizes.values())
    rows.append(("all", human(total), f"{human(trained)} ({100 * trained / max(total, 1):.1f} %)", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _label(module: str, names: list[str], of_kinds: dict) -> str:
    """The module's name, with the layers that are meant where others of the same stack are treated otherwise."""
    if not module:
        return "(the model's own)"
    if len(of_kinds) == 1 or not module.endswith(".*"):
        return module
    place = module.count(".")

    def layers(names):
        return {int(plain_name(name).split(".")[place]) for name in names}

    own = sorted(layers(names))
    if sum(len(layers(others)) for others in of_kinds.values()) > len(layers(sum(of_kinds.values(), []))):
        return module  # treated otherwise within each layer
    starts = [i for i in own if i - 1 not in own]
    ends = [i for i in own if i + 1 not in own]
    ranges = (f"{a}-{b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))
    return module[:-1] + ",".join(ranges)


def human(number: int) -> str:
    """1234567 -> "1.23 M": three digits and a unit."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(number)


__all__ = ["human", "overview"]
