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
from transformers import Trainer

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
    """Stops the run before the optimizer step if a loss or the gradient is NaN or infinite, and names the samples.

    The losses of a step are collected on the device, and checked once a step together with the gradient's norm. That check
    waits for the backward pass to end, before the optimizer's kernels, which are few and large; the Trainer's own filter of
    NaN (`logging_nan_inf_filter`), which waits in every forward pass, is off instead. Every process takes part, so that all
    stop at the same step.
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def observe(self, trainer: Trainer, loss: torch.Tensor) -> None:
        """Record the loss of a micro-batch."""
        self._losses.append(loss.detach().float().mean())
        if trainer.is_deepspeed_enabled:
            # DeepSpeed steps within its backward pass.
            self._check(trainer, None)
            if trainer.accelerator.sync_gradients:
                self._losses.clear()

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
        self._losses.clear()

    def _check(self, trainer: Trainer, grad_norm: torch.Tensor | float | None) -> None:
        finite = torch.isfinite(torch.stack(self._losses)).all()
        if grad_norm is not None:
            if isinstance(grad_norm, torch.Tensor):
                grad_norm = getattr(grad_norm, "full_tensor", lambda: grad_norm)().to(finite.device)  # FSDP's DTensor
            finite = finite & torch.isfinite(torch.as_tensor(grad_norm, device=finite.device))
        bad = trainer.accelerator.reduce((~finite).float(), "sum")
        if bad.item():
            self._stop(trainer, None if grad_norm is None else float(grad_norm))

    def _stop(self, trainer: Trainer, grad_norm: float | None) -> None:
        losses = [loss.item() for loss in self._losses]
        not_finite = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        # If all losses are finite and the gradient is not, any micro-batch may be the cause.
        of_loss = any(gather_object([len(not_finite)]))
        batches = [
            {
                "rank": trainer.args.process_index,
                "micro_batch": i,
                "loss": str(losses[i]),
                "samples": _samples(trainer, i),
            }
            for i in (not_finite if of_loss else range(len(losses)))
        ]
        batches = gather_object(batches)
        step = trainer.state.global_step + 1
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


def _samples(trainer: Trainer, micro_batch: int) -> list[dict[str, Any]]:
    """Return where the samples of this process's micro-batch, counted from 0 in this step, come from."""
    loader, dataset = trainer.callback_handler.train_dataloader, trainer.train_dataset
    if getattr(loader, "batch_sampler", None) is None:
        return []  # an iterable dataset has no indices
    accumulation = trainer.args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    position = trainer.state.global_step % steps_per_epoch * accumulation + micro_batch
    # The same draw of indices as the loader's, made again because the items don't carry them.
    indices = next(islice(iter(loader.batch_sampler), position, None))
    return [{"index": i, **(dataset.sample_id(i) if hasattr(dataset, "sample_id") else {})} for i in indices]


__all__ = ["BATCH_FILE", "LOSSES", "FiniteLossGuard", "loss_weights", "mean_counts"]
