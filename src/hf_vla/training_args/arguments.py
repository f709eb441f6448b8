"""`VLATrainingArguments`: transformers' `TrainingArguments` plus what policies need in addition."""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments

#: value of `report_to` -> packages of which one is needed; the first is what to install
REPORT_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "comet_ml": ("comet_ml",),
}


@dataclass
class VLATrainingArguments(TrainingArguments):
    r"""
    Arguments of [`VLATrainer`], in addition to those of [`transformers.TrainingArguments`].

    Parameters that control what is trained, and at which rate:
        module_learning_rates (`dict[str, float]`, *optional*):
            Regular expression -> learning rate. A parameter takes the rate of the first pattern that `re.search` finds in
            its name, else `learning_rate`. A pattern that matches no parameter, or only frozen ones and those of earlier
            patterns, is an error. Every group follows the schedule from its own rate.
        freeze_modules (`list[str]`, *optional*):
            Regular expressions; parameters whose names match one are not trained. Modules that are fully frozen stay in
            evaluation mode, without dropout.

    Parameters that control where training starts:
        pretrained_checkpoint (`str`, *optional*):
            A policy (folder or Hub repository, in this format or StarVLA's) whose weights are loaded first.
        reload_modules (`list[str]`, *optional*):
            Regular expressions; of `pretrained_checkpoint`, only matching parameters are loaded.

    Parameters that control the loss:
        vlm_loss_scale (`float`, *optional*, defaults to 0.1):
            Weight of the language-model loss in co-training; the action loss has weight 1.
        repeated_diffusion_steps (`int`, *optional*):
            Noise draws per sample in one training step, instead of the number in the policy's configuration.

    Parameters that control the averaged weights:
        ema_decay (`float`, *optional*):
            Decay of an exponential moving average of the trained weights, which evaluation and the final policy use. By
            default there is none.
        ema_update_every (`int`, *optional*, defaults to 1):
            Optimizer steps between updates of the average.

    Parameters that control speed:
        torch_compile (`bool`, *optional*):
            Compile the transformer blocks of backbone and head one by one. By default on a GPU on which torch can compile, unless
            weights are sharded (FSDP, DeepSpeed) or quantised.

    Parameters that control co-training, for `VLATrainer(vlm_dataset=…)`:
        vlm_per_device_train_batch_size (`int`, *optional*):
            Conversations per batch, beside `per_device_train_batch_size` robot samples. By default the same number.

    Parameters that control batches and the output folder:
        global_batch_size (`int`, *optional*):
            Samples per optimizer step over all processes; `gradient_accumulation_steps` follows from it.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Let `hf-vla train` remove the checkpoints of an earlier run in `output_dir`; otherwise it refuses to mix runs.

    With `lr_scheduler_type="cosine_with_min_lr"`, every parameter group ends at exactly `lr_scheduler_kwargs["min_lr"]`.
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS + ["module_learning_rates", "liger_kernel_config"]

    module_learning_rates: dict | str | None = field(
        default=None, metadata={"help": "regex -> learning rate, first match wins"}
    )
    freeze_modules: list[str] | None = field(
        default=None, metadata={"help": "regexes of the parameters that are not trained"}
    )
    pretrained_checkpoint: str | None = field(
        default=None, metadata={"help": "policy (folder or Hub repository) whose weights are loaded first"}
    )
    reload_modules: list[str] | None = field(
        default=None,
        metadata={"help": "regexes: which of pretrained_checkpoint's parameters are loaded; default: all"},
    )
    vlm_loss_scale: float = field(default=0.1, metadata={"help": "weight of the language-model loss in co-training"})
    repeated_diffusion_steps: int | None = field(
        default=None, metadata={"help": "noise draws per sample in a step; default: the policy's"}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "decay of the moving average of the weights, such as 0.999; default: no average"},
    )
    ema_update_every: int = field(default=1, metadata={"help": "optimizer steps between updates of the average"})
    # Redefined because transformers' own can't be given as a flag.
    liger_kernel_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: which of Liger's kernels the backbone gets, with use_liger_kernel"}
    )
    # Redefined because None, the default, lets the device decide.
    torch_compile: bool | None = field(
        default=None, metadata={"help": "compile the transformer blocks; default: on GPUs where torch can"}
    )
    vlm_per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "conversations per batch in co-training; default: as many as robot samples"}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "samples per step over all processes; sets gradient_accumulation_steps"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "remove the checkpoints of an earlier run in output_dir"}
    )
    # FiniteLossGuard stops the run instead of hiding such losses.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "kept False: a loss that is NaN stops the run"}
    )
    # The collator reads the raw columns.
    remove_unused_columns: bool = field(default=False, metadata={"help": "kept False: the collator needs all columns"})

    def __post_init__(self):
        if self.global_batch_size is not None:
            # Before DeepSpeed's configuration is filled in by the parent class.
            self.gradient_accumulation_steps = accumulation_steps(
                self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps
            )
        check_report_to(self.report_to)
        best = self.metric_for_best_model or ""
        if self.greater_is_better is None and best.removeprefix("eval_").startswith("action_error"):
            self.greater_is_better = False  # the Trainer assumes that all metrics except losses are to be maximised
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # as recipes write it; transformers 5.23 only knows the bare flag
        super().__post_init__()
        batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.global_batch_size not in (None, batch):
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}, but {self.world_size} processes with {self.n_gpu} GPUs each "
                f"make {batch}; start one process per GPU with torchrun"
            )
        for name in ("freeze_modules", "reload_modules"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is the string {getattr(self, name)!r}; give a list of regular expressions")
        if self.module_learning_rates is not None and not isinstance(self.module_learning_rates, dict):
            raise ValueError(
                f"module_learning_rates is {self.module_learning_rates!r}; give a mapping from regular expressions to rates"
            )
        rates = {}
        for pattern, rate in (self.module_learning_rates or {}).items():
            rates[str(pattern)] = number = _number(rate)
            if isinstance(number, bool) or not isinstance(number, float | int) or not 0 <= number < math.inf:
                raise ValueError(f"module_learning_rates: {pattern!r} has {rate!r}; give a rate, 0 or more")
        self.module_learning_rates = rates or None
        if self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {name: _number(value) for name, value in self.lr_scheduler_kwargs.items()}
        if self.reload_modules and not self.pretrained_checkpoint:
            raise ValueError("reload_modules says what to take from pretrained_checkpoint, which is not set")
        if self.vlm_loss_scale < 0:
            raise ValueError(f"vlm_loss_scale is {self.vlm_loss_scale}; it must be 0 or more")
        if self.vlm_per_device_train_batch_size is not None and self.vlm_per_device_train_batch_size < 1:
            raise ValueError(
                f"vlm_per_device_train_batch_size is {self.vlm_per_device_train_batch_size}; it must be 1 or more"
            )
        if self.repeated_diffusion_steps is not None and self.repeated_diffusion_steps < 1:
            raise ValueError(f"repeated_diffusion_steps is {self.repeated_diffusion_steps}; it must be at least 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be between 0 and 1, such as 0.999, or left out")
        if self.ema_update_every < 1:
            raise ValueError(f"ema_update_every is {self.ema_update_every}; it must be at least 1")
        if self.label_names is None:
            self.label_names = ["actions"]


def check_report_to(report_to: str | Sequence[str] | None) -> None:
    """Raise an ImportError now, not when training begins, if a package that `report_to` needs is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to or ():
        packages = REPORT_PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ImportError(
                f"report_to names {name}, which is not installed; run pip install {packages[0].replace('_', '-')}, or "
                "leave it out: summary.jsonl and loss.png are written anyway"
            )


def accumulation_steps(global_batch: int, per_device: int, given: int = 1) -> int:
    """Return the gradient accumulation steps that make up the global batch with the launcher's number of processes.

    Raises:
        ValueError: the global batch is not divisible, or `given` is neither 1 nor the number of steps that makes it up.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    together = per_device * processes
    if global_batch < 1 or global_batch % together:
        near = sorted({max(1, global_batch // together) * together, (max(0, global_batch) // together + 1) * together})
        raise ValueError(
            f"global_batch_size {global_batch} is not a multiple of per_device_train_batch_size {per_device} x {processes} "
            f"processes = {together}; the nearest that are: {' and '.join(map(str, near))}"
        )
    steps = global_batch // together
    if given not in (1, steps):
        raise ValueError(
            f"global_batch_size {global_batch} takes {steps} accumulation steps of {together} samples, but "
            f"gradient_accumulation_steps is {given}; leave one of the two out"
        )
    return steps


def _number(value):
    """Return text such as 5e-7 as a number: YAML only reads it as one when written 5.0e-7."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


__all__ = ["VLATrainingArguments"]
