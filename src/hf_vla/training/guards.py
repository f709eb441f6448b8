"""`FiniteLossGuard`: a loss that is NaN or infinite stops the run before the optimizer step, and its samples are named."""

import json
import math
import os
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer

BATCH_FILE = "nan_batch.json"


class FiniteLossGuard:
    """Collects the losses of a step on the device, and looks at all of them and the gradient's norm once a step.

    The one look waits for the backward pass to end, where the optimizer's kernels, few and large, come next; the Trainer's
    own filter of NaN (`logging_nan_inf_filter`), which waits in every forward pass, is off instead. Every process takes
    part, so that all stop at the same step.
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def observe(self, trainer: Trainer, loss: torch.Tensor) -> None:
        """Remember the loss of a micro-batch."""
        self._losses.append(loss.detach().float().mean())
        if trainer.is_deepspeed_enabled:
            # DeepSpeed steps within its backward pass.
            self._look(trainer, None)
            if trainer.accelerator.sync_gradients:
                self._losses.clear()

    def check(self, trainer: Trainer, grad_norm: torch.Tensor | float | None) -> None:
        """Call before the optimizer step.

        Raises:
            ValueError: a loss, or the gradient, of this step is not finite in some process. `OUTPUT/nan_batch.json` then
                has the samples' dataset, episode and frame.
        """
        if trainer.is_deepspeed_enabled:
            return
        # With fp16, gradients overflow now and then, and the scaler leaves out these steps.
        self._look(trainer, grad_norm if trainer.accelerator.scaler is None else None)
        self._losses.clear()

    def _look(self, trainer: Trainer, grad_norm: torch.Tensor | float | None) -> None:
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
        lost = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        reports = gather_object([{"rank": trainer.args.process_index, "lost": len(lost), "losses": losses}])
        # Where all losses are finite and the gradient is not, any micro-batch may be its cause.
        of_loss = any(report["lost"] for report in reports)
        batches = [
            {
                "rank": trainer.args.process_index,
                "micro_batch": i,
                "loss": str(losses[i]),
                "samples": _samples(trainer, i),
            }
            for i in (lost if of_loss else range(len(losses)))
        ]
        batches = gather_object(batches)
        step = trainer.state.global_step + 1
        file = os.path.join(trainer.args.output_dir, BATCH_FILE)
        if trainer.is_world_process_zero():
            os.makedirs(trainer.args.output_dir, exist_ok=True)
            content = {"step": step, "epoch": trainer.state.epoch, "grad_norm": str(grad_norm), "batches": batches}
            with open(file, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1)
        trainer.accelerator.wait_for_everyone()  # a launcher ends all processes as soon as one has failed
        what = (
            f"a loss of step {step} is {batches[0]['loss']}"
            if of_loss
            else f"the gradient of step {step} is {grad_norm}"
        )
        raise ValueError(
            f"{what}: stopped before the optimizer step. {file} names the batch's "
            f"{sum(len(batch['samples']) for batch in batches)} samples; if they are sound, start anew from the last "
            "checkpoint's weights (pretrained_checkpoint) with a smaller learning_rate or max_grad_norm, or bf16 in place "
            "of fp16"
        )


def _samples(trainer: Trainer, micro_batch: int) -> list[dict[str, Any]]:
    """Where the samples of this process's micro-batch, counted from 0 in this step, come from."""
    loader, dataset = trainer.callback_handler.train_dataloader, trainer.train_dataset
    if getattr(loader, "batch_sampler", None) is None:
        return []  # an iterable dataset has no indices
    accumulation = trainer.args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / accumulation)
    position = trainer.state.global_step % steps_per_epoch * accumulation + micro_batch
    # The same draw of indices as the loader's: made anew, as the items don't carry them.
    indices = next(islice(iter(loader.batch_sampler), position, None))
    return [{"index": i, **(dataset.sample_id(i) if hasattr(dataset, "sample_id") else {})} for i in indices]


__all__ = ["BATCH_FILE", "FiniteLossGuard"]
