"""Convert a policy between StarVLA's native format and this package's.

    python scripts/convert_checkpoint.py StarVLA/Qwen3VL-PI_v3-Bridge-RT-1 my-policy
    python scripts/convert_checkpoint.py runs/my_run my-policy --base-vlm Qwen/Qwen3-VL-4B-Instruct --checkpoint steps_5000_pytorch_model.pt
    python scripts/convert_checkpoint.py my-policy my-run --to starvla --step 5000

SRC is a folder or Hub repository; its format is recognised. DST must not exist, or be empty; it is written whole or not at all.
"""

from pathlib import Path

from hf_vla.cli import ArgumentParser, one_line_errors


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("src", metavar="SRC", help="folder or Hub repository of a policy, in either format")
    parser.add_argument("dst", metavar="DST", help="folder to write")
    parser.add_argument("--to", choices=("hf_vla", "starvla"), default="hf_vla", help="format to write")
    parser.add_argument("--base-vlm", help="backbone repository or folder, for native SRC")
    parser.add_argument("--checkpoint", help="which checkpoint file of a native SRC; by default the highest step's")
    parser.add_argument("--fast-tokenizer", help="FAST tokenizer repository or folder, for native QwenFast")
    parser.add_argument("--dtype", default="auto", help="auto keeps the checkpoint's; else float32, bfloat16, float16")
    parser.add_argument("--step", type=int, default=0, help="step in the name of a native checkpoint")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    with one_line_errors():
        from transformers import AutoModel, AutoProcessor

        import hf_vla  # noqa: F401  registers the frameworks
        from hf_vla.checkpoints.starvla import save_repository
        from hf_vla.utils import new_folder

        given = {"base_vlm": arguments.base_vlm, "fast_tokenizer": arguments.fast_tokenizer}
        native = {name: value for name, value in given.items() if value is not None}
        for_model = native | ({"checkpoint": arguments.checkpoint} if arguments.checkpoint else {})
        processor = AutoProcessor.from_pretrained(arguments.src, **native)
        model = AutoModel.from_pretrained(arguments.src, dtype=arguments.dtype, **for_model)
        if arguments.to == "starvla":
            save_repository(model, processor, arguments.dst, step=arguments.step)
        else:
            with new_folder(Path(arguments.dst)) as work:
                model.save_pretrained(work)
                processor.save_pretrained(work)
    print(f"{arguments.dst}: {model.config.model_type}, {model.num_parameters():,} parameters, {arguments.to} format")


if __name__ == "__main__":
    main()
