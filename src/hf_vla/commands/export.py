"""Export a policy's prediction for ONNX Runtime and torch.export: processor outputs in, normalised actions out.

    hf-vla export outputs/quickstart/policy exported
    hf-vla export my_user/droid exported --format onnx --views 2 --instruction "put the red block into the second drawer"

The network is for one batch size, one number and size of images, and prompts of at most one length. DIR says in export.json and README.md
what it takes (names, shapes, preprocessing; noise is an input), and holds an example and the processor. What was exported is run on the
CPU and compared with the policy. QwenFAST, which writes tokens in a loop, and backbones other than Qwen2.5-VL and Qwen3-VL can't be
exported.
"""

from .command import command
from .parser import ArgumentParser, log_to_console
from .policy_arguments import add_policy_arguments, policy_options


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla export", description=__doc__, takes_file=False)
    parser.add_argument("policy", metavar="POLICY", help="folder or Hub repository of the policy")
    parser.add_argument("output", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format", nargs="+", default=["onnx", "pt2"], choices=("onnx", "pt2"), help="for ONNX Runtime, torch.export"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="observations per call")
    parser.add_argument("--views", type=int, help="images of an observation; default: as in its training, else 1")
    parser.add_argument(
        "--instruction",
        default="pick up the red block and put it on the green plate",
        help="prompts may be as long as this one's, rounded up to a multiple of 16 tokens",
    )
    parser.add_argument("--num-inference-steps", type=int, help="denoising steps; default: the policy's")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of weights and computation"
    )
    parser.add_argument("--unnorm-key", help="the statistics key, if the policy has several")
    parser.add_argument(
        "--base-vlm", help="where a native StarVLA checkpoint's backbone config and processor come from"
    )
    add_policy_arguments(parser)
    return parser


@command(extra="export")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    import torch

    from ..inference.export import export_policy
    from ..inference.policy import Policy

    if arguments.batch_size < 1:
        raise ValueError(f"batch_size is {arguments.batch_size}; give 1 or more")
    loading = policy_options(arguments) | ({} if arguments.base_vlm is None else {"base_vlm": arguments.base_vlm})
    dtype = getattr(torch, arguments.dtype)
    policy = Policy.from_pretrained(arguments.policy, arguments.unnorm_key, device="cpu", dtype=dtype, **loading)
    about = export_policy(
        policy,
        arguments.output,
        arguments.format,
        batch_size=arguments.batch_size,
        views=arguments.views,
        instruction=arguments.instruction,
        num_inference_steps=arguments.num_inference_steps,
    )
    for name, wanted in about["inputs"].items():
        print(f"{name}: {wanted['dtype']} {wanted['shape']}, {wanted['what']}")
    for name, difference in about["largest_difference"].items():
        print(
            f"{arguments.output}/{about['files'][name]}: actions differ by at most {difference:.1e} from the policy's"
        )
