"""The identity of a run: saved with every checkpoint, and compared before a run resumes from one."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data import DatasetMixture
from .checkpointing import read_run

logger = logging.get_logger(__name__)

# A checkpoint that differs in one of these belongs to another run: weights, optimizer or data would start over or be
# ignored. The optimizer's state brings its own learning rates: others would have no effect.
_REFUSED = ("engine", "model", "processor", "data", "seed", "global_batch_size", "optimizer")
# These may change; the run then continues, but not bit for bit as it would have.
_WARNED = ("schedule", "processes", "numerics", "arguments")
_SHOWN = 5


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """Return the identity of a run as JSON, independent of paths and of how often it was resumed."""
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    run = {
        "engine": "deepspeed" if trainer.is_deepspeed_enabled else "fsdp" if trainer.is_fsdp_enabled else "plain",
        "model": {"class": type(model).__name__, "parameters": dict(_parameters(model))},
        "processor": _processor(trainer.processing_class),
        "data": _data(trainer.train_dataset),
        "seed": [args.seed, args.data_seed],
        "global_batch_size": trainer.get_total_train_batch_size(args),
        "optimizer": _named(
            args,
            "optim optim_args learning_rate module_learning_rates weight_decay adam_beta1 adam_beta2 adam_epsilon",
        ),
        "schedule": _named(
            args, "max_steps num_train_epochs lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm"
        ),
        "processes": _named(args, "world_size per_device_train_batch_size gradient_accumulation_steps"),
        "numerics": _named(args, "bf16 fp16 torch_compile"),
        "arguments": _own_arguments(args) | getattr(trainer, "own_arguments", {}),
        "save_only_model": args.save_only_model,
    }
    return json.loads(json.dumps(run, default=str))


def check_same_run(checkpoint: Path, run: dict[str, Any], may_finish: bool = False) -> None:
    """Check that the run `run` can resume from a checkpoint.

    Args:
        may_finish: whether it may be the run's last step, as its policy is still to be saved.

    Raises:
        ValueError: the checkpoint belongs to another run, holds only the weights, or its run is finished.
    """
    saved = read_run(checkpoint)
    step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
    max_steps = run["schedule"]["max_steps"]
    ended = 0 < max_steps <= step
    may_finish = may_finish and ended and saved["schedule"]["max_steps"] == max_steps
    anew = f"start a new run from its weights with --pretrained_checkpoint {checkpoint} and another output_dir"
    if saved["save_only_model"] and not may_finish:
        raise ValueError(
            f"{checkpoint} holds only the weights, as it was saved with save_only_model, and cannot be resumed; {anew}"
        )
    if refused := list(_differences(saved, run, _REFUSED)):
        raise ValueError(
            f"{checkpoint} belongs to another run: {_shown(refused)}. Use the settings that it was made with, which are in "
            f"config.yaml beside the checkpoints, or {anew}"
        )
    before, now = (it["processes"]["world_size"] for it in (saved, run))
    if before != now and run["data"]["shuffled"]:
        raise ValueError(
            f"{checkpoint} was saved by {before} processes, now there are {now}: a shuffled dataset's order depends on "
            "their number; start as many, or train on a DatasetMixture, whose order does not"
        )
    if ended and not may_finish:
        raise ValueError(
            f"{checkpoint} is step {step} of {max_steps}: that run is finished, and the folder is a "
            "policy; to train longer, set a higher max_steps"
        )


def warn_of_changes(checkpoint: Path, run: dict[str, Any]) -> None:
    """Log which settings differ from the checkpoint's that may, but make the run continue differently."""
    if changed := list(_differences(read_run(checkpoint), run, _WARNED)):
        logger.warning(
            f"{checkpoint} was made with other settings; the run will differ from there on: {_shown(changed)}"
        )


def follows_mixture(dataset) -> bool:
    """Return whether it is a mixture, or follows its `mixture` item by item: its order is then that of its indices."""
    return isinstance(getattr(dataset, "mixture", dataset), DatasetMixture)


def _digest(value: Any) -> str:
    """Return a short hash of JSON; numbers are rounded to six digits, as the last ones differ between machines."""
    return hashlib.sha256(json.dumps(_rounded(value), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _parameters(model) -> Iterator[tuple[str, str]]:
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed ZeRO-3 leaves an empty parameter
        yield name, f"{'x'.join(map(str, shape))} {'trained' if parameter.requires_grad else 'frozen'}"


def _processor(processor) -> dict[str, Any]:
    """Return its settings, long ones as hashes. Statistics and what it records of its inputs are part of the data."""
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    return {
        name: value if len(json.dumps(value, default=str)) < 200 else _digest(value)
        for name, value in settings.items()
        if name not in ("statistics", "input_contract")
    }


def _data(dataset) -> dict[str, Any]:
    identity = dataset.identity if hasattr(dataset, "identity") else {"type": type(dataset).__name__}
    known = {"statistics": _digest(_exact(dataset.statistics))} if hasattr(dataset, "statistics") else {}
    size = {"items": len(dataset)} if has_length(dataset) else {}
    return {**identity, **known, **size, "shuffled": getattr(dataset, "shuffled", not follows_mixture(dataset))}


def _named(args: TrainingArguments, names: str) -> dict[str, Any]:
    return {name: getattr(args, name, None) for name in names.split()}


def _own_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the fields of `VLATrainingArguments`, without those compared elsewhere or only relevant at the start."""
    elsewhere = {"module_learning_rates", "freeze_modules", "global_batch_size"}
    elsewhere |= {"pretrained_checkpoint", "reload_modules", "overwrite_output_dir"}
    elsewhere |= {field.name for field in dataclasses.fields(TrainingArguments)}
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.name not in elsewhere}


def _differences(saved: dict, now: dict, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield from _difference(name, saved.get(name), now.get(name))


def _difference(name: str, saved: Any, now: Any) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*saved, *now]):
            yield from _difference(f"{name}.{key}", saved.get(key), now.get(key))
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for index, values in enumerate(zip(saved, now, strict=True)):
            yield from _difference(f"{name}[{index}]", *values)
    elif isinstance(saved, list) and isinstance(now, list):
        yield f"{name} has {len(saved)} entries in the checkpoint, {len(now)} now"
    elif saved != now:
        yield f"{name} is {_text(saved)} in the checkpoint, {_text(now)} now"


def _text(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


def _shown(differences: list[str]) -> str:
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _exact(statistics: Any) -> Any:
    """Return statistics without means and deviations: if these are about zero, rounding errors differ between machines."""
    if not isinstance(statistics, dict):
        return statistics
    return {name: _exact(value) for name, value in statistics.items() if name not in ("mean", "std")}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


__all__ = ["check_same_run", "describe_run", "follows_mixture", "warn_of_changes"]
