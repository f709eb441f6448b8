"""`VLATrainer`: transformers' `Trainer` with learning rates per module, frozen modules, averaged weights and co-training."""

import contextlib
import copy
import os
from collections import defaultdict

import torch

from ..data import DatasetMixture, VLADataCollator
from ..training_args.arguments import VLATrainingArguments
from ..training_args.input_contracts import record_inputs
from ..transformers_internals import partial_optimizer_states
from .card import write_training_card
from .co_training_setup import refuse_plain_text, refuse_vlm_settings, set_up_co_training
from .ema import EMA_FILE, EMACallback, WeightAverage, check_engine
from .engines import PerProcessSeed, compile_by_default, prepare_accelerator, prepare_arguments
from .evaluation import EvaluatingTrainer
from .group_report import GroupRecorder
from .losses import FiniteLossGuard, UnreadChecks, loss_weights, mean_counts
from .model_setup import apply_liger_to_backbone, load_pretrained, set_repeated_diffusion_steps
from .parameter_groups import DEFAULT_GROUP, FrozenInEval, decayed_parameters, freeze, rate_groups, split_by_rate
from .resuming import ResumableTrainer
from .run_log import LossPlotCallback, ShortRunCallback, SummaryCallback
from .schedules import check_schedule, final_rate, schedule_per_group
from .throughput import ThroughputRecorder


class VLATrainer(EvaluatingTrainer, ResumableTrainer):
    """Trains a policy.

    Args:
        model: a policy model.
        args: [`VLATrainingArguments`].
        train_dataset: items as in `LeRobotDataset` and `DatasetMixture`.
        vlm_dataset: a `LlavaDataset` or several, to co-train with: each step then also trains the backbone's language model
            on `args.vlm_per_device_train_batch_size` conversations, weighted by `args.vlm_loss_scale`. `train_dataset` must
            be a `DatasetMixture`.
        processing_class: the policy's processor; saved with every checkpoint.
        data_collator: by default `VLADataCollator(processing_class)`.
        kwargs: as for [`~hf_vla.training.evaluation.EvaluatingTrainer`] and `Trainer`.

    Raises:
        ValueError: settings that contradict each other, the model or the data; all are checked before training begins.
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
        if args.repeated_diffusion_steps is not None:
            set_repeated_diffusion_steps(model, args.repeated_diffusion_steps)
        if args.use_liger_kernel:
            apply_liger_to_backbone(model, args.liger_kernel_config)
            # Done; in evaluation the Trainer would pass the model an argument of Liger's own models.
            args = copy.copy(args)
            args.use_liger_kernel = False
        self._check_rates(model, args, **kwargs)
        if isinstance(kwargs.get("train_dataset"), DatasetMixture):
            # A mixture's items are random draws already; read in order, they are the same with any number of workers and
            # processes, and a resumed run continues where it stopped.
            args.train_sampling_strategy = "sequential"
        record_inputs(processing_class, kwargs.get("train_dataset"), kwargs["data_collator"])
        if vlm_dataset is None:
            refuse_vlm_settings(args)
        else:
            kwargs["train_dataset"], kwargs["data_collator"] = set_up_co_training(
                model, args, kwargs.get("train_dataset"), vlm_dataset, kwargs["data_collator"], processing_class
            )
        self.group_names: list[str] = []
        self._frozen = FrozenInEval()
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._count = 0
        self._guard = FiniteLossGuard()
        self._mean_counts: torch.Tensor | None = None
        prepare_arguments(args)
        compile_by_default(args, model)
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        prepare_accelerator(self.accelerator, self.model)
        refuse_plain_text(self.train_dataset, self.accelerator)
        self._recorder = GroupRecorder(self)
        self.ema = None
        if args.ema_decay is not None:
            check_engine(self)
            self.ema = WeightAverage(args.ema_decay, args.ema_update_every)
            self.add_callback(EMACallback(self.ema))
        self._throughput = ThroughputRecorder(self)
        checks = UnreadChecks(self, self._guard)
        callbacks = (self._recorder, ShortRunCallback, LossPlotCallback, SummaryCallback, PerProcessSeed, checks)
        for callback in (*callbacks, self._throughput):
            self.add_callback(callback)

    @staticmethod
    def _check_rates(model, args: VLATrainingArguments, optimizers=(None, None), **_) -> None:
        """Check learning rates and schedule now rather than when optimizer and scheduler are made."""
        rates = args.module_learning_rates or {}
        groups = rate_groups(model, rates)
        if optimizers[0] is not None and rates:
            raise ValueError("module_learning_rates have no effect on an optimizer that is passed in; leave one out")
        used = {DEFAULT_GROUP: args.learning_rate, **rates}
        used = {group: rate for group, rate in used.items() if group in groups.values()}
        steps = max(args.max_steps, 1)
        if optimizers[1] is None:
            check_schedule(args.lr_scheduler_type, args.lr_scheduler_kwargs, used, args.get_warmup_steps(steps), steps)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Return the names of matrices and kernels; see [`~hf_vla.training.parameter_groups.decayed_parameters`]."""
        return decayed_parameters(model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, with parameter groups per learning rate, with and without weight decay."""
        made, rates = self.optimizer is None, self.args.module_learning_rates or {}
        optimizer = super().create_optimizer(model)
        model = self.model if model is None else model
        if made:
            self.group_names = split_by_rate(optimizer, model, rate_groups(model, rates), rates)
        elif rates and not self.group_names:
            raise ValueError(
                "module_learning_rates have no effect on the optimizer of DeepSpeed's configuration; take its section "
                "`optimizer` out, and the one of the training arguments (optim) is used"
            )
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the Trainer's scheduler; one that ends at a rate (`min_lr`, `lr_end`) does so in every parameter group."""
        args = self.args
        if self.lr_scheduler is None and final_rate(args.lr_scheduler_type, args.lr_scheduler_kwargs) is not None:
            optimizer = self.optimizer if optimizer is None else optimizer
            warmup = args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = schedule_per_group(
                args.lr_scheduler_type, optimizer, warmup, num_training_steps, args.lr_scheduler_kwargs
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _build_accelerator_args(self, **kwargs) -> dict:
        """With `torch_compile`, compile the repeated blocks of backbone and head one by one.

        Compiled as a whole, a backbone has tens of graph breaks, wherever control flow depends on image sizes.
        """
        options = super()._build_accelerator_args(**kwargs)
        options["dynamo_plugin"].use_regional_compilation = True
        return options

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._throughput.clock.start("data")
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_counts = mean_counts(self.model, batches, self.accelerator)
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._throughput.clock.start("forward")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._throughput.clock.start("optimizer")
        return loss

    def floating_point_ops(self, inputs) -> float:
        """Count a micro-batch that was trained on, and return its floating-point operations; 0 if they are not known."""
        return self._throughput.count(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            self._frozen.apply(model)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            weights = loss_weights(self.model, inputs, self._mean_counts)
            for name, scale in (("action_loss", 1.0), ("vlm_loss", self.args.vlm_loss_scale)):
                if (value := outputs.get(name)) is not None:
                    if self._mean_counts is not None or scale != 1:
                        loss = loss + (scale * weights[name] - 1) * value  # its weight in the model's loss is 1
                    self._sums[name] = self._sums[name].to(value.device) + value.detach() * weights[name]
            self._count += 1
            self._guard.observe(self, loss)
            self._throughput.clock.start("backward")
        return (loss, outputs) if return_outputs else loss

    def ema_weights(self) -> contextlib.AbstractContextManager:
        """Return a context in which the model has the averaged weights if `ema_decay` is set; else nothing changes."""
        return contextlib.nullcontext() if self.ema is None else self.ema.used_by(self.model)

    def evaluate(self, *args, **kwargs):
        with self.ema_weights():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with self.ema_weights():
            return super().evaluation_loop(*args, **kwargs)

    def write_policy(self, folder: str) -> None:
        """Write the policy, with the averaged weights if `ema_decay` is set, and describe the training in its model card.

        A checkpoint has the weights being trained, and the average in a file of its own.
        """
        with contextlib.nullcontext() if self._saving else self.ema_weights():
            super().write_policy(folder)
        if self.args.should_save:
            write_training_card(self, folder)
            if self._saving and self.ema is not None:
                self.ema.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with partial_optimizer_states():
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.ema is not None:
            self.ema.load(checkpoint, self.model)
        elif os.path.isfile(os.path.join(checkpoint, EMA_FILE)):
            raise ValueError(
                f"{checkpoint} was trained with ema_decay; set it to resume, or start a new run from its weights with "
                "pretrained_checkpoint"
            )

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(self.state.best_model_checkpoint, self.model)

    def create_model_card(
        self, language=None, license=None, tags=None, model_name=None, finetuned_from=None, dataset_tags=None, **others
    ) -> None:
        """Renew the policy's card, as `push_to_hub` does too; the arguments go into its metadata."""
        if given := [name for name, value in others.items() if value is not None]:
            raise TypeError(f"a policy's model card has no field for {', '.join(given)}")
        metadata = {"language": language, "license": license, "tags": tags, "model_name": model_name}
        metadata |= {"base_model": finetuned_from} | ({"datasets": dataset_tags} if dataset_tags else {})
        if self.is_world_process_zero():
            write_training_card(self, self.args.output_dir, **metadata)

    def _get_grad_norm(self, model, grad_norm=None):
        """Check that losses and gradient are finite: this is the last hook before each optimizer step."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._guard.check(self, grad_norm)
        return grad_norm

    def running_losses(self) -> dict:
        return {"count": self._count, "sums": {name: total.item() for name, total in self._sums.items()}}

    def load_running_losses(self, state: dict) -> None:
        self._count = state["count"]
        self._sums.update({name: torch.tensor(total) for name, total in state["sums"].items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding each loss's mean since the last log over all processes, each group's rate and gradient norm, and the speed."""
        if "loss" in logs:
            for name, total in self._sums.items():
                logs[name] = (self.accelerator.reduce(total.float(), reduction="mean") / self._count).item()
            self._sums.clear()
            self._count = 0
            logs |= self._recorder.logs(logs.get("grad_norm"), self.args.max_grad_norm)
            logs |= self._throughput.logs()
        super().log(logs, start_time)


__all__ = ["LossPlotCallback", "VLATrainer"]
