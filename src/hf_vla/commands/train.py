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

from .command import command
from .launching import launch_command, split_launch_arguments, start


@command
def main(argv: list[str] | None = None) -> None:
    launch, argv = split_launch_arguments(argv)
    if launch.launch is not None:
        start(launch_command(launch, ["train", *argv]))
    from ..training.run import summarize, train
    from ..training_args.arguments import VLATrainingArguments
    from ..training_args.evaluation_arguments import EvaluationArguments
    from ..training_args.peft import PeftArguments
    from ..training_args.recipe import DataArguments, PolicyArguments
    from .dataclass_parser import parse_dataclasses

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    types = (PolicyArguments, DataArguments, PeftArguments, EvaluationArguments, VLATrainingArguments)
    arguments, given = parse_dataclasses(types, argv, description=__doc__)
    trainer = train(*arguments, given=given)
    if trainer.is_world_process_zero():
        for line in summarize(trainer):
            print(line)
