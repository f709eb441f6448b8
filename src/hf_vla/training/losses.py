"""The losses of an optimizer step: each target counts the same, and a loss that is not finite stops the run.

A model's loss is a mean over a batch's targets: action steps that are not padding, labelled tokens. Batches differ in their
number of targets; if their means were averaged as they are, a step's gradient would depend on how its samples were dealt out
to micro-batches and processes. With n_k targets in batch k of K, weighting its mean by n_k / (sum(n) / K) gives the mean
over all targets.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback

from ..utils.files import atomic_write

LOSSES = ("action_loss", "vlm_loss")
BATCH_FILE = "nan_batch.json"


# ------------------------------------------------------------------------------------------------ targets of micro-batches


def mean_counts(model, batches: Sequence[Mapping], accelerator: Accelerator) -> torch.Tensor | None:
    """Return the number of targets of each of `LOSSES` in an average micro-batch of this step, over all processes.

    Returns:
        float32 (2,), or None if the step has only one micro-batch.
    """
    if len(batches) * accelerator.num_processes <= 1:
        return None
    total = torch.stack([_counts(model, batch, accelerator.device) for batch in batches]).sum(dim=0)
    return accelerator.reduce(total, reduction="mean") / len(batches)


def loss_weights(model, batch: Mapping, mean: torch.Tensor | None) -> dict[str, float | torch.Tensor]:
    """Return the factor on each loss of a micro-batch, given the step's `mean_counts`."""
    if mean is None:
        return dict.fromkeys(LOSSES, 1.0)
    factors = _counts(model, batch, mean.device) / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return dict(zip(LOSSES, factors.unbind(), strict=True))


def _counts(model, batch: Mapping, device: torch.device) -> torch.Tensor:
    """Targets of each of `LOSSES` in a batch, by the model's `loss_counts`: float32 (2,)."""
    found = model.loss_counts(batch)
    return torch.stack([torch.as_tensor(found.get(name, 0), dtype=torch.float32, device=device) for name in LOSSES])


# ------------------------------------------------------------------------------------------------------------ finite losses


class FiniteLossGuard:
    """Stops the run if a loss or the gradient is NaN or infinite, before the weights change, and names the samples.

    The losses of a step are collected on the device, and checked together with the gradient's norm. The Trainer's own filter
    of NaN (`logging_nan_inf_filter`), which waits in every forward pass, is off instead. Every process takes part, so that all
    stop at the same step.

    * On the CPU, and with optimizers that can't skip a step by themselves, the host reads the check before each optimizer step.
    * On a GPU it does not wait for it: fused AdamW is told on the device to leave the weights as they are, in this step and all
      later ones, and the host reads the checks when something is logged, evaluated or saved, and after `MAX_UNREAD` steps.
    """

    #: steps after which the host looks at the latest
    MAX_UNREAD = 50

    def __init__(self) -> None:
        #: whether the host reads the checks later; decided at the first one
        self.deferred: bool | None = None
        self._losses: list[torch.Tensor] = []
        self._failed: torch.Tensor | None = None  # 1 if any step's check failed, else 0
        self._unread: list[tuple[torch.Tensor, list[torch.Tensor], Any, int]] = []  # failed, losses, norm, step

    def observe(self, trainer: Trainer, loss: torch.Tensor) -> None:
        """Record the loss of a micro-batch."""
        self._losses.append(loss.detach().float().mean())
        if trainer.is_deepspeed_enabled:
            # DeepSpeed steps within its backward pass.
            self._check(trainer, None)
            if trainer.accelerator.sync_gradients:
                self._losses = []

    def check(self, trainer: Trainer, grad_norm: torch.Tensor | float | None) -> None:
        """Check the recorded losses and the gradient's norm; call it before the optimizer step.

        Raises:
            ValueError: a loss or the gradient of this step is not finite in some process. `OUTPUT/nan_batch.json` then
                names the dataset, episode and frame of the samples.
        """
        if trainer.is_deepspeed_enabled:
            return
        # With fp16, gradients overflow now and then, and the scaler skips these steps.
        self._check(trainer, grad_norm if trainer.accelerator.scaler is None else None)
        self._losses = []

    def confirm(self, trainer: Trainer) -> None:
        """Read the checks that have not been read yet; call it before anything of the run is written or reported.

        Raises:
            ValueError: as `check` does.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        failed = torch.stack([failed for failed, *_ in unread]).tolist()
        for has_failed, (_, losses, grad_norm, step) in zip(failed, unread, strict=True):
            if has_failed:
                self._stop(trainer, losses, None if grad_norm is None else float(grad_norm), step)

    def _check(self, trainer: Trainer, grad_norm: torch.Tensor | float | None) -> None:
        finite = torch.isfinite(torch.stack(self._losses)).all()
        if grad_norm is not None:
            if isinstance(grad_norm, torch.Tensor):
                grad_norm = getattr(grad_norm, "full_tensor", lambda: grad_norm)().to(finite.device)  # FSDP's DTensor
            finite = finite & torch.isfinite(torch.as_tensor(grad_norm, device=finite.device))
        failed = trainer.accelerator.reduce((~finite).float(), "sum")
        step = trainer.state.global_step + 1
        if self.deferred is None:
            self.deferred = _skips_on_device(trainer)
        if self.deferred:
            failed = failed.clamp(max=1)
            self._failed = failed if self._failed is None else torch.maximum(self._failed, failed)
            # What a gradient scaler sets; the optimizer then changes neither weights nor its own state.
            _inner_optimizer(trainer).found_inf = self._failed
            self._unread.append((failed, self._losses, grad_norm, step))
            if len(self._unread) >= self.MAX_UNREAD:
                self.confirm(trainer)
        elif failed.item():
            self._stop(trainer, self._losses, None if grad_norm is None else float(grad_norm), step)

    @staticmethod
    def _stop(trainer: Trainer, losses: list[torch.Tensor], grad_norm: float | None, step: int) -> None:
        losses = [loss.item() for loss in losses]
        not_finite = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        # If all losses are finite and the gradient is not, any micro-batch may be the cause.
        of_loss = any(gather_object([len(not_finite)]))
        batches = [
            {
                "rank": trainer.args.process_index,
                "micro_batch": i,
                "loss": str(losses[i]),
                "samples": _samples(trainer, step, i),
            }
            for i in (not_finite if of_loss else range(len(losses)))
        ]
        batches = gather_object(batches)
        file = os.path.join(trainer.args.output_dir, BATCH_FILE)
        if trainer.is_world_process_zero():
            content = {"step": step, "epoch": trainer.state.epoch, "grad_norm": str(grad_norm), "batches": batches}
            with atomic_write(file) as partial:
                partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        trainer.accelerator.wait_for_everyone()  # a launcher ends all processes as soon as one has failed
        what = (
            f"a loss of step {step} is {batches[0]['loss']}"
            if of_loss
            else f"the gradient of step {step} is {grad_norm}"
        )
        raise ValueError(
            f"{what}: stopped before the optimizer step. {file} names the batch's "
            f"{sum(len(batch['samples']) for batch in batches)} samples; if they are sound, start again from the last "
            "checkpoint's weights (pretrained_checkpoint) with a smaller learning_rate or max_grad_norm, or bf16 in place "
            "of fp16"
        )


class UnreadChecks(TrainerCallback):
    """Has the guard's checks read before anything is logged, evaluated or saved, and while the loader still draws their epoch."""

    def __init__(self, trainer: Trainer, guard: FiniteLossGuard) -> None:
        self.trainer, self.guard = trainer, guard

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self.guard.confirm(self.trainer)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.guard.confirm(self.trainer)


def _inner_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """Without accelerate's wrapper."""
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def _skips_on_device(trainer: Trainer) -> bool:
    """Whether the optimizer can leave a step out by a number on the device: torch's fused ones, of whole weights on a GPU."""
    if trainer.is_deepspeed_enabled:
        return False
    optimizer = _inner_optimizer(trainer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return (
        trainer.accelerator.scaler is None
        and bool(optimizer.defaults.get("fused"))
        and getattr(optimizer, "_step_supports_amp_scaling", False)
        and all(parameter.device.type == "cuda" and not hasattr(parameter, "full_tensor") for parameter in parameters)
    )


def _samples(trainer: Trainer, step: int, micro_batch: int) -> list[dict[str, Any]]:
    """Return where the samples of this process's micro-batch, counted from 0 in step 1, 2, …, of this epoch come from."""
    loader, dataset = trainer.callback_handler.train_dataloader, trainer.train_dataset
    if getattr(loader, "batch_sampler", None) is None:
        return []  # an iterable dataset has no indices
    accumulation = trainer.args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    position = (step - 1) % steps_per_epoch * accumulation + micro_batch
    # The same draw of indices as the loader's, made again because the items don't carry them.
    indices = next(islice(iter(loader.batch_sampler), position, None))
    return [{"index": i, **(dataset.sample_id(i) if hasattr(dataset, "sample_id") else {})} for i in indices]


__all__ = ["BATCH_FILE", "LOSSES", "FiniteLossGuard", "UnreadChecks", "loss_weights", "mean_counts"]
