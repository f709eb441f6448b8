"""A training run as a recipe describes it: policy, data, adapter and evaluation, to a trained policy in `output_dir`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data import VLADataCollator
from ..training_args.arguments import VLATrainingArguments
from ..training_args.evaluation_arguments import EvaluationArguments
from ..training_args.peft import PeftArguments
from ..training_args.recipe import DataArguments, PolicyArguments, build
from ..utils.distributed import from_first_process
from .checkpointing import checkpoint_to_resume, remove_checkpoints, saved_policy_step
from .held_out import HoldOut
from .run_identity import check_same_run, describe_run
from .run_log import write_run_config
from .trainer import VLATrainer

logger = logging.get_logger(__name__)


def train(
    policy_args: PolicyArguments,
    data_args: DataArguments,
    peft_args: PeftArguments,
    evaluation_args: EvaluationArguments,
    args: VLATrainingArguments,
    *,
    given: Mapping[str, Any] | None = None,
) -> VLATrainer:
    """Train a policy, or continue an interrupted run, and write the policy to `args.output_dir`.

    Args:
        policy_args: the policy to train.
        data_args: the demonstrations, and conversations to co-train with.
        peft_args: whether and how an adapter is trained instead of the policy.
        evaluation_args: what to evaluate on while training.
        args: everything else, as for [`VLATrainer`].
        given: the training arguments that were set explicitly, for `OUTPUT/config.yaml`; by default none.

    Returns:
        The trainer, after training.

    Raises:
        ValueError: settings that contradict each other, the model or the data; all are checked before training begins.
    """
    given = dict(given or {})
    if args.output_dir is None:
        raise ValueError("set output_dir: where checkpoints and the trained policy go")
    if "vlm_loss_scale" in given and not data_args.vlm_dataset:
        raise ValueError("vlm_loss_scale weighs the loss of vlm_dataset's conversations, and no vlm_dataset is set")
    checkpoint = checkpoint_to_resume(args)
    evaluation_args.check_strategy(args.eval_strategy)
    hold_out, closed_loop = HoldOut(evaluation_args), _closed_loop(evaluation_args)
    loading_options = peft_args.loading_options(policy_args, args)
    model, processor, dataset = build(policy_args, data_args, args.seed, hold_out, **loading_options)
    if peft_args.use_peft:
        from .lora import add_adapter  # needs peft

        model = add_adapter(model, policy_args, peft_args)
    eval_dataset = hold_out.frames(dataset, data_args.columns)
    trainer = VLATrainer(
        model,
        args,
        train_dataset=dataset,
        vlm_dataset=data_args.conversations,
        eval_dataset=eval_dataset,
        closed_loop=closed_loop,
        processing_class=processor,
        data_collator=VLADataCollator(processor, use_state=data_args.use_state),
    )
    with args.main_process_first(desc="checking the data"):
        dataset.check()
        if eval_dataset is not None:
            eval_dataset.check()
    start_or_continue(trainer, checkpoint, (policy_args, data_args, peft_args, evaluation_args), given)
    return trainer


def start_or_continue(
    trainer: VLATrainer,
    checkpoint: Path | None,
    recipe: Sequence[Any],
    given: Mapping[str, Any],
    before_learning: Callable[[], None] | None = None,
) -> None:
    """Train from the beginning or from a checkpoint, and save the policy; a run that is finished is left as it is.

    Args:
        trainer: of the run, before training.
        checkpoint: what the run continues from, as `checkpoint_to_resume` found it.
        recipe: the parts of the recipe, for `OUTPUT/config.yaml`.
        given: the training arguments that were set explicitly, for the same.
        before_learning: called in the main process when all is checked and an earlier run's checkpoints are removed, if
            `overwrite_output_dir` is set; the other processes wait for it.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    args = trainer.args
    resume = "auto" if args.resume_from_checkpoint == "auto" else checkpoint
    if checkpoint is not None:
        check_same_run(checkpoint, describe_run(trainer), trainer.may_finish(checkpoint, resume))
    if trainer.is_world_process_zero():
        output = Path(args.output_dir)
        if args.overwrite_output_dir:
            remove_checkpoints(output)
        write_run_config(output, recipe, dict(given))
    if before_learning is not None:
        with torch.random.fork_rng(devices=[]):  # the run is the same without it
            from_first_process(before_learning)
    saved = None if checkpoint is None else saved_policy_step(args.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    if saved is not None and checkpoint.name == f"checkpoint-{saved}" and saved == trainer.state.global_step:
        logger.warning(f"the run in {args.output_dir} is finished: nothing was trained or written")
    else:
        trainer.save_model()


def summarize(trainer: VLATrainer) -> list[str]:
    """Return lines that say how often each dataset was read, how many items were skipped, and where policy and curves are.

    Args:
        trainer: of a finished run, as `train` returns it.
    """
    mixture = getattr(trainer.train_dataset, "mixture", trainer.train_dataset)  # without conversations
    lines = []
    for member in mixture.report():
        passes = member["expected_passes"] * trainer.state.epoch
        lines.append(f"{member['dataset']}: {passes:.1f} passes over {member['frames']} frames")
    if mixture.num_skipped:
        lines.append(f"skipped {mixture.num_skipped} items that can't be read")
    lines.append(f"policy written to {trainer.args.output_dir}")
    curves = Path(trainer.args.output_dir) / "loss.png"
    if curves.is_file():
        lines.append(f"curves: {curves}; all on one page: hf-vla report {trainer.args.output_dir}")
    return lines


def _closed_loop(evaluation_args: EvaluationArguments):
    """Return the trainer's function for closed-loop results, or None."""
    if not evaluation_args.eval_env:
        return None
    from ..evaluation.success import SuccessRate  # simulators, which most runs don't need

    return SuccessRate(
        evaluation_args.eval_env,
        [task for part in evaluation_args.eval_tasks for task in part.split(",") if task],
        evaluation_args.eval_env_episodes,
        unnorm_key=evaluation_args.eval_unnorm_key,
        execute_steps=evaluation_args.eval_execute_steps,
        **evaluation_args.eval_env_config,
    )


__all__ = ["start_or_continue", "summarize", "train"]
