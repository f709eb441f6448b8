"""What a run logs of its parameter groups: a table at the start, then each group's learning rate and gradient norm."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..checkpoints.adapted_modules import plain_name
from .parameter_groups import DEFAULT_GROUP, decayed_parameters, numel, rate_groups

logger = logging.get_logger(__name__)

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
#: module, or all layers of a stack together -> learning rate, None if frozen -> names of parameters
_Rows = dict[str, dict[float | None, list[str]]]


class GroupRecorder(TrainerCallback):
    """Logs the table of what is trained once, and records each group's learning rate and gradient norm before clipping.

    Rates are those of the last step. Norms are taken in the steps that are logged, or in all if it is epochs that are logged,
    if there is more than one group. Under DeepSpeed, whose engine does not expose the gradients, there are none.

    Args:
        trainer: its `group_names` name the optimizer's parameter groups.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._rates: dict[str, float] = {}
        self._norms: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            table = parameter_table(model, args.learning_rate, args.module_learning_rates or {}, args.weight_decay)
            logger.info(f"what is trained:\n{table}")

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._norms = {}
        step = state.global_step + 1
        logged = step % max(1, int(state.logging_steps)) == 0 or step >= state.max_steps
        logged = logged or (step == 1 and args.logging_first_step) or args.logging_strategy == "epoch"
        if not logged or len(set(self.trainer.group_names)) < 2:
            return
        gradients: dict[str, list[torch.Tensor]] = {}
        for name, group in self._groups(optimizer):
            gradients.setdefault(name, []).extend(p.grad for p in group["params"] if p.grad is not None)
        for name, tensors in gradients.items():
            if tensors:
                norm = torch.nn.utils.get_total_norm(tensors)
                self._norms[name] = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        # Before the scheduler moves on: the rates of this step.
        self._rates = {name: float(group["lr"]) for name, group in self._groups(optimizer)}

    def _groups(self, optimizer) -> list[tuple[str, dict]]:
        names, groups = self.trainer.group_names, optimizer.param_groups
        if len(names) != len(groups):  # DeepSpeed's own optimizer, which has one rate
            names = [DEFAULT_GROUP] * len(groups)
        return list(zip(names, groups, strict=True))

    def logs(self, grad_norm: float | None, max_grad_norm: float) -> dict[str, float]:
        """Return `learning_rate/GROUP` and `grad_norm/GROUP`.

        Args:
            grad_norm: of all parameters, before clipping to `max_grad_norm`.
        """
        logs = {f"learning_rate/{name}": rate for name, rate in self._rates.items()}
        clipped = 1.0
        if grad_norm is not None and max_grad_norm:
            clipped = min(1.0, max_grad_norm / (grad_norm + 1e-6))  # the factor of torch's clip_grad_norm_
        return logs | {f"grad_norm/{name}": norm / clipped for name, norm in self._norms.items()}


def parameter_table(
    model: nn.Module, learning_rate: float, rates: dict[str, float], weight_decay: float, max_rows: int = 18
) -> str:
    """Return a table of the modules with their parameters, whether they are trained, learning rate and weight decay.

    Modules with 2 % of the parameters or more are split into their children until the table has `max_rows` rows; the layers
    of a stack share a row. "0.01 of 98.8 %": the weight decay applies to that share of the row's parameters.
    """
    sizes = {name: numel(parameter) for name, parameter in model.named_parameters()}
    groups = rate_groups(model, rates)
    rate_of = {name: rates.get(groups[name], learning_rate) if name in groups else None for name in sizes}
    decayed = set(decayed_parameters(model)) if weight_decay else set()

    def rows_at(names: Iterable[str], depth: int) -> _Rows:
        rows: _Rows = {}
        for name in names:
            module = ".".join(_INDEX.sub("*", plain_name(name)).split(".")[:-1][:depth])
            rows.setdefault(module, {}).setdefault(rate_of[name], []).append(name)
        return rows

    def split_largest(rows: _Rows) -> _Rows | None:
        """Split the largest module that can be split; None if the table would become too long."""
        everything = {module: sum(by_rate.values(), []) for module, by_rate in rows.items()}
        size = {module: sum(sizes[name] for name in names) for module, names in everything.items()}
        for module in sorted(rows, key=lambda module: -size[module]):
            children = rows_at(everything[module], module.count(".") + 2)
            if module.endswith("*") or set(children) == {module} or size[module] < 0.02 * sum(size.values()):
                continue
            split: _Rows = {}
            for key in rows:
                split |= children if key == module else {key: rows[key]}
            if sum(map(len, split.values())) <= max_rows:
                return split
        return None

    rows = rows_at(sizes, 1)
    while split := split_largest(rows):
        rows = split

    lines = [("module", "parameters", "trainable", "learning rate", "weight decay")]
    for module, by_rate in rows.items():
        for rate, names in by_rate.items():
            total = sum(sizes[n] for n in names)
            share = sum(sizes[n] for n in names if n in decayed) / max(total, 1) if rate is not None else 0
            decay = f"{weight_decay:g} of {100 * share:.1f} %" if share else "-"
            rate = ("no", "-") if rate is None else ("yes", f"{rate:g}")
            lines.append((_label(module, names, by_rate), format_count(total), *rate, decay))
    trained = sum(size for name, size in sizes.items() if rate_of[name] is not None)
    total = sum(sizes.values())
    share = f"{format_count(trained)} ({100 * trained / max(total, 1):.1f} %)"
    lines.append(("all", format_count(total), share, "", ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _label(module: str, names: list[str], by_rate: dict) -> str:
    """The module's name, with the numbers of its layers if other layers of the same stack have another rate."""
    if not module:
        return "(the model's own)"
    if len(by_rate) == 1 or not module.endswith(".*"):
        return module
    place = module.count(".")

    def layers(names):
        return {int(plain_name(name).split(".")[place]) for name in names}

    own = sorted(layers(names))
    if sum(len(layers(others)) for others in by_rate.values()) > len(layers(sum(by_rate.values(), []))):
        return module  # rates differ within the layers
    starts = [i for i in own if i - 1 not in own]
    ends = [i for i in own if i + 1 not in own]
    ranges = (f"{a}-{b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))
    return module[:-1] + ",".join(ranges)


def format_count(number: int) -> str:
    """Format a number with three digits and a unit: 1234567 -> "1.23 M"."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(number)


__all__ = ["GroupRecorder", "format_count", "parameter_table"]
