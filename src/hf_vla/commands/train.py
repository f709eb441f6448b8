"""Train a policy.

    hf-vla train recipes/quickstart.yaml
    hf-vla train recipes/quickstart.yaml --max_steps 200 --output_dir outputs/short
    hf-vla train --base_vlm Qwen/Qwen3-VL-4B-Instruct --framework qwen_pi_v3 --dataset my_user/my_data \\
        --output_dir outputs/mine --module_learning_rates '{"^action_head|^projectors": 1e-4}' --learning_rate 1e-5

An adapter of a trained policy (LoRA), saved without the policy; --load_in_4bit or --load_in_8bit for a smaller backbone:

    hf-vla train --policy outputs/quickstart/policy --dataset my_user/my_data --use_peft \\
        --output_dir outputs/adapter --learning_rate 2e-4

Several processes, here two on one machine: python -m torch.distributed.run --standalone --nproc_per_node 2 -m hf_vla train …

CONFIG.yaml maps flag names to values; flags on the command line win. All of transformers' TrainingArguments are flags too.
A run that was stopped goes on exactly where its last checkpoint is with --resume_from_checkpoint true; see docs/training.md.
The run's whole configuration is kept as config.yaml in its output folder, so that `hf-vla train OUTPUT/config.yaml` repeats it.
"""

import logging
import sys

from .parser import one_line_errors


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
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
