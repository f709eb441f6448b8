"""Train a policy.

    hf-vla train quickstart
    hf-vla train quickstart --max_steps 200 --output_dir outputs/short
    hf-vla train --base_vlm Qwen/Qwen3-VL-4B-Instruct --framework qwen_pi_v3 --dataset my_user/my_data \\
        --output_dir outputs/mine --module_learning_rates '{"^action_head|^projectors": 1e-4}' --learning_rate 1e-5

An adapter of a trained policy (LoRA), saved without the policy; --load_in_4bit or --load_in_8bit for a smaller backbone:

    hf-vla train --policy outputs/quickstart/policy --dataset my_user/my_data --use_peft \\
        --output_dir outputs/adapter --learning_rate 2e-4

RECIPE is the name of one of the package's recipes, or a YAML file that maps flag names to values; its key `base` names a recipe
whose values hold if it has none. Flags on the command line win. All of transformers' TrainingArguments are flags too.
A run that was stopped goes on exactly where its last checkpoint is with --resume_from_checkpoint true; see docs/training.md.
The run's whole configuration is kept as config.yaml in its output folder, so that `hf-vla train OUTPUT/config.yaml` repeats it.

On several GPUs, one process each (docs/scaling.md):

    hf-vla train my_recipe.yaml --launch fsdp2 --bf16 true
    hf-vla train my_recipe.yaml --launch zero2 --num_machines 2 --machine_rank 0 --main_process_ip HOST --bf16 true
"""

import logging
import sys
from pathlib import Path

from .command import command
from .launching import launch_command, split_launch_arguments, start


def closed_loop(evaluation):
    """What the trainer calls for closed-loop results, or None: only here do training and simulators meet."""
    if not evaluation.eval_env:
        return None
    from ..evaluation.success import SuccessRate

    return SuccessRate(
        evaluation.eval_env,
        [task for part in evaluation.eval_tasks for task in part.split(",") if task],
        evaluation.eval_env_episodes,
        unnorm_key=evaluation.eval_unnorm_key,
        execute_steps=evaluation.eval_execute_steps,
        **evaluation.eval_env_config,
    )


@command
def main(argv: list[str] | None = None) -> None:
    launch, argv = split_launch_arguments(argv)
    if launch.launch is not None:
        start(launch_command(launch, ["train", *argv]))
    from ..data import VLADataCollator
    from ..training.checkpointing import checkpoint_to_resume, remove_checkpoints
    from ..training.held_out import HoldOut
    from ..training.run_identity import check_same_run, describe_run
    from ..training.run_log import write_run_config
    from ..training.trainer import VLATrainer
    from ..training_args.arguments import VLATrainingArguments
    from ..training_args.evaluation_arguments import EvaluationArguments
    from ..training_args.peft import PeftArguments
    from ..training_args.recipe import DataArguments, PolicyArguments, build
    from .dataclass_parser import parse_dataclasses

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    types = (PolicyArguments, DataArguments, PeftArguments, EvaluationArguments, VLATrainingArguments)
    (policy, data, peft, evaluation, args), given = parse_dataclasses(types, argv, description=__doc__)
    if args.output_dir is None:
        raise ValueError("set output_dir: where checkpoints and the trained policy go")
    if "vlm_loss_scale" in given and not data.vlm_dataset:
        raise ValueError("vlm_loss_scale weighs the loss of vlm_dataset's conversations, and no vlm_dataset is set")
    checkpoint = checkpoint_to_resume(args)
    evaluation.check_strategy(args.eval_strategy)
    hold_out, rollouts = HoldOut(evaluation), closed_loop(evaluation)
    model, processor, dataset = build(policy, data, args.seed, hold_out, **peft.loading_options(policy, args))
    if peft.use_peft:
        from ..training.lora import add_adapter

        model = add_adapter(model, policy, peft)
    held_out = hold_out.frames(dataset, data.columns)
    output = Path(args.output_dir)
    collator = VLADataCollator(processor, use_state=data.use_state)
    trainer = VLATrainer(
        model,
        args,
        train_dataset=dataset,
        vlm_dataset=data.conversations,
        eval_dataset=held_out,
        closed_loop=rollouts,
        processing_class=processor,
        data_collator=collator,
    )
    with args.main_process_first(desc="checking the data"):
        dataset.check()
        if held_out is not None:
            held_out.check()
    if checkpoint is not None:
        check_same_run(checkpoint, describe_run(trainer))
    if trainer.is_world_process_zero():
        if args.overwrite_output_dir:
            remove_checkpoints(output)
        write_run_config(output, (policy, data, peft, evaluation), given)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        for member in dataset.report():
            print(
                f"{member['dataset']}: {member['expected_passes'] * trainer.state.epoch:.1f} passes over {member['frames']} frames"
            )
        if dataset.num_skipped:
            print(f"skipped {dataset.num_skipped} items that can't be read")
        print(f"policy written to {output}")
