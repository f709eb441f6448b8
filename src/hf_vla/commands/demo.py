"""Open the demo: predict from images, watch the policy drive a simulator, look inside it.

    hf-vla demo                                  # the quickstart's policy if it is there, or one with random weights
    hf-vla demo --model user/policy --port 7861
    hf-vla demo --model user/policy --push user/space      # upload it as a Space instead, with this package inside

Without --model, the environment variable MODEL_ID names the policy. GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are read too.

If other machines can reach the page, visitors may load policies from the Hub only, no folders of this machine, and only
what is public: this machine's Hub token is used for the policy that --model or MODEL_ID names, and for visitors' with
--lend-token or the environment variable LEND_TOKEN=1.
"""

import os

from .command import command
from .parser import ArgumentParser
from .policy_arguments import add_policy_arguments, policy_options


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla demo", description=__doc__)
    parser.add_argument("--model", help="folder or Hub repository of the policy, or 'untrained'")
    add_policy_arguments(parser)
    parser.add_argument("--host", help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, help="default: 7860, or the next free one")
    parser.add_argument(
        "--lend-token",
        action="store_true",
        default=None,
        help="load what visitors name with this machine's Hub token: they then see its private repositories",
    )
    parser.add_argument(
        "--push", metavar="USER/SPACE", help="upload the demo as a Space on the Hub, and do not open it here"
    )
    parser.add_argument("--private", action="store_true", default=None, help="with --push: make a private Space")
    parser.add_argument(
        "--extras", nargs="+", metavar="EXTRA", help="with --push: extras of hf_vla for the Space; default: demo sim"
    )
    return parser


@command(extra="demo")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    if arguments.push is None and (arguments.private or arguments.extras):
        raise ValueError("--private and --extras are for a Space: add --push USER/SPACE")
    if arguments.push is not None:
        here = ("host", "port", "lend_token", "robot_type", "unnormalization")
        if given := [f"--{name.replace('_', '-')}" for name in here if getattr(arguments, name) is not None]:
            raise ValueError(
                f"{', '.join(given)}: for a demo here, which --push does not open; leave out one or the other"
            )
        from ..demo.space import EXTRAS, push_space

        extras = tuple(arguments.extras or EXTRAS)
        address = push_space(arguments.push, arguments.model, extras=extras, private=arguments.private)
        print(f"uploaded to {address}")
        return
    from ..demo.app import launch

    lend_token = bool(arguments.lend_token) or os.environ.get("LEND_TOKEN") == "1"
    launch(arguments.model, arguments.host, arguments.port, lend_token, **policy_options(arguments))
