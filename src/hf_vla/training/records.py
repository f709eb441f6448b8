"""What a run logs of its parameter groups: a table at the start, then each group's learning rate and gradient norm."""

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .overview import overview
from .patterns import DEFAULT_GROUP

logger = logging.get_logger(__name__)


class GroupRecorder(TrainerCallback):
    """The table of what is trained, logged once; each group's learning rate in the last step, and the norm of its gradient before clipping.

    Norms are taken in the steps that are logged, where there is more than one group. Under DeepSpeed, whose engine keeps
    the gradients to itself, there are none.

    Args:
        trainer: whose `group_names` name the optimizer's parameter groups.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._rates: dict[str, float] = {}
        self._norms: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            table = overview(model, args.learning_rate, args.module_learning_rates or {}, args.weight_decay)
            logger.info(f"what is trained:\n{table}")

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._norms = {}
        step = state.global_step + 1
        logged = step % max(1, int(state.logging_steps)) == 0 or step >= state.max_steps
        logged = logged or (step == 1 and args.logging_first_step)
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
        # Before the scheduler moves on: the rates that this step was taken with.
        self._rates = {name: float(group["lr"]) for name, group in self._groups(optimizer)}

    def _groups(self, optimizer) -> list[tuple[str, dict]]:
        names, groups = self.trainer.group_names, optimizer.param_groups
        if len(names) != len(groups):  # DeepSpeed's own optimizer, which has one rate
            names = [DEFAULT_GROUP] * len(groups)
        return list(zip(names, groups, strict=True))

    def logs(self, grad_norm: float | None, max_grad_norm: float) -> dict[str, float]:
        """`learning_rate/GROUP` and `grad_norm/GROUP`.

        Args:
            grad_norm: of all parameters, before clipping to `max_grad_norm`.
        """
        logs = {f"learning_rate/{name}": rate for name, rate in self._rates.items()}
        clipped = 1.0
        if grad_norm is not None and max_grad_norm:
            clipped = min(1.0, max_grad_norm / (grad_norm + 1e-6))  # what torch's clip_grad_norm_ multiplied with
        return logs | {f"grad_norm/{name}": norm / clipped for name, norm in self._norms.items()}


__all__ = ["GroupRecorder"]
