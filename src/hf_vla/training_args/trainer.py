"""`VLATrainer`: transformers' `Trainer` with a learning rate a module, frozen modules, and the loss of each kind logged."""

import math
from collections import defaultdict

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModel
from transformers.utils import logging

from ..checkpoints.adapted_modules import merge
from ..data import DatasetMixture, VLADataCollator
from ..modeling.zero3 import copy_weights, full_shape, not_partitioned
from . import engines, loss_weights
from .arguments import VLATrainingArguments
from .card import write_training_card
from .cotraining import co_training, refuse_plain_text, refuse_vlm_settings
from .evaluation import EvaluatingTrainer
from .guards import FiniteLossGuard
from .patterns import freeze, learning_rates, matching_parameters
from .resuming import ResumableTrainer
from .run_log import LossPlotCallback, ShortRunCallback, SummaryCallback

logger = logging.get_logger(__name__)


class VLATrainer(EvaluatingTrainer, ResumableTrainer):
    """Trains a policy.

    Args:
        model: a policy model.
        args: [`VLATrainingArguments`].
        train_dataset: items as `LeRobotDataset` and `DatasetMixture` give them.
        vlm_dataset: a `LlavaDataset` or several, to co-train with: each step then also trains the backbone's language on
            `args.vlm_per_device_train_batch_size` conversations, weighted by `args.vlm_loss_scale`. `train_dataset` must be
            a `DatasetMixture`.
        processing_class: the policy's processor; saved with every checkpoint.
        data_collator: by default `VLADataCollator(processing_class)`.
        kwargs: as for [`~hf_vla.training_args.evaluation.EvaluatingTrainer`] and `Trainer`.
    """

    def __init__(
        self,
        model=None,
        args: VLATrainingArguments | None = None,
        *,
        processing_class=None,
        vlm_dataset=None,
        **kwargs,
    ):
        if not isinstance(args, VLATrainingArguments):
            raise ValueError(f"args is a {type(args).__name__}; give VLATrainingArguments(output_dir=…)")
        if kwargs.get("data_collator") is None:
            if processing_class is None:
                raise ValueError("pass the policy's processor as processing_class, or a data_collator")
            kwargs["data_collator"] = VLADataCollator(processing_class)
        if args.pretrained_checkpoint:
            load_pretrained(model, args.pretrained_checkpoint, args.reload_modules)
        if args.freeze_modules:
            freeze(model, args.freeze_modules)
        # Found out now rather than when the optimizer is made.
        learning_rates(model, args.learning_rate, args.module_learning_rates or {})
        if isinstance(kwargs.get("train_dataset"), DatasetMixture):
            # A mixture's items are random draws already; in order, they are the same under any number of workers and
            # ranks, and a resumed run goes on where it stopped.
            args.train_sampling_strategy = "sequential"
        if vlm_dataset is None:
            refuse_vlm_settings(args)
        else:
            kwargs["train_dataset"], kwargs["data_collator"] = co_training(
                model, args, kwargs.get("train_dataset"), vlm_dataset, kwargs["data_collator"], processing_class
            )
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._count = 0
        self._guard = FiniteLossGuard()
        self._mean_counts: torch.Tensor | None = None
        engines.prepare_arguments(args)
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        engines.prepare_accelerator(self.accelerator, self.model)
        refuse_plain_text(self.train_dataset, self.accelerator)
        for callback in (ShortRunCallback, LossPlotCallback, SummaryCallback):
            self.add_callback(callback)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """One parameter group for each learning rate, with and without weight decay."""
        model = self.model if model is None else model
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(model))
            parameters = dict(model.named_parameters())
            groups = defaultdict(list)
            rates = learning_rates(model, self.args.learning_rate, self.args.module_learning_rates or {})
            for name, rate in rates.items():
                groups[rate, self.args.weight_decay if name in decayed else 0.0].append(parameters[name])
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()], **options
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """As the Trainer's; `cosine_with_min_lr` with `min_lr` ends at that rate in every parameter group."""
        options = self.args.lr_scheduler_kwargs or {}
        if self.lr_scheduler is None and self.args.lr_scheduler_type == "cosine_with_min_lr" and "min_lr" in options:
            optimizer = self.optimizer if optimizer is None else optimizer
            warmup = self.args.get_warmup_steps(num_training_steps)
            scale = [
                cosine_with_floor(group["lr"], options["min_lr"], warmup, num_training_steps)
                for group in optimizer.param_groups
            ]
            self.lr_scheduler = LambdaLR(optimizer, scale)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_counts = loss_weights.mean_counts(self.model, batches, self.accelerator)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            weights = loss_weights.weights(self.model, inputs, self._mean_counts)
            for name, scale in (("action_loss", 1.0), ("vlm_loss", self.args.vlm_loss_scale)):
                if (value := outputs.get(name)) is not None:
                    if self._mean_counts is not None or scale != 1:
                        loss = loss + (scale * weights[name] - 1) * value  # in the model's loss it has weight 1
                    self._sums[name] = self._sums[name].to(value.device) + value.detach() * weights[name]
            self._count += 1
            self._guard.observe(self, loss)
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; the policy's model card tells of the training."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_training_card(self, output_dir or self.args.output_dir)

    def create_model_card(
        self, language=None, license=None, tags=None, model_name=None, finetuned_from=None, dataset_tags=None, **others
    ) -> None:
        """Renew the policy's card, which `push_to_hub` does too; the arguments go into its metadata."""
        if given := [name for name, value in others.items() if value is not None]:
            raise TypeError(f"a policy's model card has no place for {', '.join(given)}")
        metadata = {"language": language, "license": license, "tags": tags, "model_name": model_name}
        metadata |= {"base_model": finetuned_from} | ({"datasets": dataset_tags} if dataset_tags else {})
        if self.is_world_process_zero():
            write_training_card(self, self.args.output_dir, **metadata)

    def _get_grad_norm(self, model, grad_norm=None):
        """The last that is called before each optimizer step."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._guard.check(self, grad_norm)
        return grad_norm

    def running_losses(self) -> dict:
        return {"count": self._count, "sums": {name: total.item() for name, total in self._sums.items()}}

    def load_running_losses(self, state: dict) -> None:
        self._count = state["count"]
        self._sums.update({name: torch.tensor(total) for name, total in state["sums"].items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each loss's mean since the last log, over all processes."""
        if "loss" in logs:
            for name, total in self._sums.items():
                logs[name] = (self.accelerator.reduce(total.float(), reduction="mean") / self._count).item()
            self._sums.clear()
            self._count = 0
        super().log(logs, start_time)


def cosine_with_floor(rate: float, floor: float, warmup: int, total: int):
    """The factor on `rate` after a step: linear warm-up, then half a cosine down to exactly `floor`."""
    ratio = min(1.0, floor / rate) if rate else 1.0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup + 1) / max(1, total - warmup))
        return ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def load_pretrained(model: torch.nn.Module, source: str, patterns: list[str] | None = None) -> None:
    """Copy the weights of another policy into `model`: all, or those whose names a pattern matches.

    Raises:
        ValueError: a pattern matches nothing, or a parameter that is to be loaded is missing or of another shape.
    """
    with not_partitioned():
        weights = merge(AutoModel.from_pretrained(source, dtype=model.dtype)).state_dict()
    own = model.state_dict(keep_vars=True)
    names = set(own)
    if patterns:
        matched = set().union(*(matching_parameters(model, pattern, "reload_modules") for pattern in patterns))
        names = {name for name in own if name in matched}
    bad = sorted(n for n in names if n not in weights or weights[n].shape != full_shape(own[n]))
    if bad:
        raise ValueError(
            f"{source} does not fit this model: {len(bad)} tensors are missing or of another shape, for example {bad[0]}; "
            "name the modules that fit in reload_modules"
        )
    copy_weights(model, {name: weights[name] for name in sorted(names)})  # the same order in all processes
    logger.warning(f"loaded {len(names)} of {len(own)} tensors from {source}")


__all__ = ["LossPlotCallback", "VLATrainer", "cosine_with_floor"]
