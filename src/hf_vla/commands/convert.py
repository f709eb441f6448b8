"""Convert a policy between StarVLA's native format and this package's.

    hf-vla convert StarVLA/Qwen3VL-PI_v3-Bridge-RT-1 my-policy
    hf-vla convert runs/my_run my-policy --base-vlm Qwen/Qwen3-VL-4B-Instruct --checkpoint steps_5000_pytorch_model.pt
    hf-vla convert my-policy my-run --to starvla --step 5000

SRC is a folder or Hub repository; its format is recognised. DST must not exist, or be empty; it is written whole or not at all.
What StarVLA's format cannot hold, and predictions depend on, is an error.
"""

from pathlib import Path

from .command import command
from .parser import ArgumentParser, log_to_console
from .policy_arguments import add_policy_arguments, policy_options


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla convert", description=__doc__)
    parser.add_argument("src", metavar="SRC", help="folder or Hub repository of a policy, in either format")
    parser.add_argument("dst", metavar="DST", help="folder to write")
    parser.add_argument("--to", choices=("hf_vla", "starvla"), default="hf_vla", help="format to write")
    parser.add_argument(
        "--base-vlm",
        help="repository or folder of the backbone's config, tokenizer and image processor: where a native SRC takes them "
        "from, or, with --to starvla of another SRC, what the written configuration names",
    )
    parser.add_argument("--checkpoint", help="which checkpoint file of a native SRC; default: the highest step's")
    parser.add_argument("--fast-tokenizer", help="FAST tokenizer repository or folder, for native QwenFast")
    add_policy_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of all that is written; auto is that in SRC, and of parts in different dtypes the first weights'",
    )
    parser.add_argument(
        "--step", type=int, help="step in the name of a native checkpoint, with --to starvla; default: 0"
    )
    return parser


def convert(arguments) -> tuple[str, int]:
    """Convert, and return the framework and the number of parameters."""
    from transformers import AutoModel, AutoProcessor

    from ..checkpoints import open_checkpoint
    from ..checkpoints.saving import save_policy
    from ..checkpoints.starvla_writer import save_repository
    from ..registry import frameworks
    from ..utils.files import refuse_full_folder

    to_starvla = arguments.to == "starvla"
    if arguments.step is not None and not to_starvla:
        raise ValueError("--step is for --to starvla only: this package's checkpoints have no step in their name")
    if arguments.step is not None and arguments.step < 0:
        raise ValueError(f"--step is {arguments.step}; it must be 0 or more")
    refuse_full_folder(Path(arguments.dst))
    given = {name: getattr(arguments, name) for name in ("base_vlm", "fast_tokenizer", "checkpoint")}
    written_base = None
    if to_starvla and not open_checkpoint(arguments.src).is_native:
        written_base = given.pop("base_vlm")
    checkpoint = open_checkpoint(arguments.src, **given)
    if checkpoint.model_type not in frameworks():
        raise ValueError(f"{arguments.src} holds a {checkpoint.model_type!r} model; only policies can be converted")
    processor = AutoProcessor.from_pretrained(checkpoint, **policy_options(arguments))
    model = AutoModel.from_pretrained(checkpoint, dtype=arguments.dtype)
    if to_starvla:
        save_repository(model, processor, arguments.dst, step=arguments.step or 0, base_vlm=written_base)
    else:
        save_policy(model, processor, arguments.dst)
    return model.config.model_type, model.num_parameters()


@command
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    framework, parameters = convert(arguments)
    print(f"{arguments.dst}: {framework}, {parameters:,} parameters, {arguments.to} format")
