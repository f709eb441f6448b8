"""Serve simulators to hf-vla rl on another machine, which sends actions and learns from what follows.

    hf-vla simulate --env metaworld --num-workers 4 --host 0.0.0.0 --api-key-file keys

and there: HF_VLA_API_KEY=… hf-vla rl ppo-metaworld --collectors ws://this-machine:10094
"""

from .command import command
from .parser import ArgumentParser, log_to_console


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla simulate", description=__doc__)
    parser.add_argument("--env", default="metaworld", help="simulator")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines")
    parser.add_argument("--port", type=int, default=10094, help="port to listen on")
    parser.add_argument("--num-workers", type=int, default=1, help="processes with simulators")
    parser.add_argument("--api-key-file", help="file with one API key per line, of which a client must show one")
    parser.add_argument(
        "--no-authentication", action="store_true", help="let everybody in who reaches --host, without a key"
    )
    return parser


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..evaluation.remote_simulators import SimulatorServer
    from ..serving.access import ApiKeys

    keys = ApiKeys.from_file(arguments.api_key_file) if arguments.api_key_file else None
    server = SimulatorServer(
        arguments.env,
        arguments.host,
        arguments.port,
        num_workers=arguments.num_workers,
        api_keys=keys,
        open_to_all=arguments.no_authentication,
    )
    print(
        f"serving {arguments.num_workers} processes with {arguments.env} at ws://{arguments.host}:{server.port}",
        flush=True,
    )
    server.serve_forever()
