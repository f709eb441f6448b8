"""Runs of the trainer that tests resume: how one is made, and what of it is compared."""

from pathlib import Path

import torch
from torch.utils.data import Subset

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.evaluation_arguments import EvaluationArguments
from hf_vla.training_args.peft import PeftArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build

TYPES = (PolicyArguments, DataArguments, VLATrainingArguments, PeftArguments, EvaluationArguments)
# Of a log row, what does not depend on the clock.
LOGGED = ("step", "epoch", "loss", "action_loss", "grad_norm", "learning_rate", "eval_loss")


def trainer_for(file: Path, output: Path, *flags, evaluate: int = 0) -> VLATrainer:
    (policy, data, args, *_), _ = parse_dataclasses(TYPES, [str(file), "--output_dir", str(output), *map(str, flags)])
    model, processor, dataset = build(policy, data, args.seed)
    held_out = Subset(dataset, range(evaluate)) if evaluate else None
    return VLATrainer(model, args, train_dataset=dataset, eval_dataset=held_out, processing_class=processor)


def rows(history: list[dict]) -> list[dict]:
    return [
        {name: row[name] for name in LOGGED if name in row} for row in history if "loss" in row or "eval_loss" in row
    ]


def outcome(trainer: VLATrainer) -> tuple[list[dict], dict[str, torch.Tensor]]:
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return rows(trainer.state.log_history), weights


def assert_same(one, other) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []
