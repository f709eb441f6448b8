"""Serve a policy over WebSocket, for robots and simulators in other processes or on other machines.

    hf-vla serve --model outputs/quickstart/policy --port 10093

Clients: hf_vla.serving.PolicyClient, StarVLA's WebsocketClientPolicy and openpi's, all on the same port. If
openpi's observations don't hold the cameras in observation/image and observation/wrist_image and the
state in observation/state, name their keys, the cameras in the policy's order:

    hf-vla serve --model my_user/droid --port 8000 \\
        --openpi-state observation/joint_position observation/gripper_position \\
        --openpi-images observation/exterior_image_1_left observation/wrist_image_left

ALOHA's observations are read as they are if the policy knows its cameras by the names that they have; else name them, too:

    hf-vla serve --model my_user/aloha --port 8000 --openpi-prompt "open the drawer" --openpi-images images/cam_high

It listens to this machine only. Other machines can connect through an SSH tunnel, or by an API key, one per line in a file:

    hf-vla serve --model my_user/droid --host 0.0.0.0 --api-key-file keys.txt --tls-cert server.pem --tls-key server.key

GET /healthz answers 200 while the server runs, /readyz while the policy predicts; /metrics is for Prometheus.
"""

import asyncio
import os
import signal
import sys
from dataclasses import fields

from .command import command
from .parser import ArgumentParser, log_to_console
from .policy_arguments import add_advantage, add_ignore_state, add_policy_arguments, policy_options


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla serve", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub repository of the policy")
    parser.add_argument(
        "--port", type=int, default=10093, help="port to listen on; 0 picks a free one; openpi's clients expect 8000"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all, which needs keys or --no-authentication",
    )
    parser.add_argument(
        "--api-key-file", help="file with the API keys of clients: one per line, or a name, a space and its key"
    )
    parser.add_argument(
        "--no-authentication", action="store_true", help="let all who reach the port use the policy, from any machine"
    )
    parser.add_argument("--tls-cert", help="PEM file with the server's certificate, to serve wss://")
    parser.add_argument("--tls-key", help="PEM file with its private key, if it is not in the certificate's file")
    parser.add_argument(
        "--origins", nargs="+", default=[], help="web pages whose scripts may connect, such as https://example.org"
    )
    parser.add_argument("--ping-interval", type=float, default=20, help="seconds between keepalive pings; 0: none")
    parser.add_argument(
        "--ping-timeout",
        type=float,
        default=120,
        help="seconds that a client may leave a ping unanswered; 0: no limit",
    )
    parser.add_argument("--log-requests", action="store_true", help="log each request, not only those that fail")
    parser.add_argument("--unnorm-key", help="which of the model's statistics to use if a request names none")
    add_policy_arguments(parser)
    add_ignore_state(parser)
    add_advantage(parser)
    parser.add_argument("--device", help="device of the policy, such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16; auto: the checkpoint's"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the policy before serving: minutes, then faster predictions"
    )
    parser.add_argument(
        "--quantization", help="int8, int4 or fp8: the weights of the backbone in 8 or 4 bits; default: as they are"
    )
    parser.add_argument(
        "--base-vlm", help="where a native StarVLA checkpoint's backbone config and processor come from"
    )
    parser.add_argument("--max-batch-size", type=int, default=8, help="observations per batch")
    parser.add_argument(
        "--openpi-images", nargs="+", help="camera keys of openpi's observations, in the policy's order"
    )
    parser.add_argument(
        "--openpi-state", nargs="+", help="keys of openpi's observations that make up the state, in order"
    )
    parser.add_argument("--openpi-prompt", help="the instruction of openpi's observations that have no prompt")
    from ..serving.limits import ServerLimits

    for limit in fields(ServerLimits):
        flag = "--" + limit.name.replace("_", "-")
        parser.add_argument(flag, type=type(limit.default), default=limit.default, help=limit.metadata["help"])
    return parser


def _allow_open_files(number: int) -> None:
    """Raise this process's limit of open files, which connections count against, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 1024 if hard == resource.RLIM_INFINITY else min(number + 1024, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(server, host: str, port: int, tls=None) -> None:
    from ..serving.server import run

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await run(server, host, port, stopped, tls)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..inference.policy import Policy
    from ..serving.access import ApiKeys, check_host, server_tls
    from ..serving.batching import padded_size
    from ..serving.limits import ServerLimits
    from ..serving.protocols import OpenpiKeys
    from ..serving.server import PolicyServer

    if not 0 <= arguments.port <= 65535:
        raise ValueError(f"port is {arguments.port}; possible: 0 to 65535")
    if arguments.max_batch_size < 1:
        raise ValueError(f"max_batch_size is {arguments.max_batch_size}; give 1 or more")
    # What can be wrong is found before the policy is loaded.
    limits = ServerLimits(**{limit.name: getattr(arguments, limit.name) for limit in fields(ServerLimits)})
    api_keys = ApiKeys.from_file(arguments.api_key_file) if arguments.api_key_file else None
    tls = server_tls(arguments.tls_cert, arguments.tls_key)
    check_host(arguments.host, api_keys is not None or arguments.no_authentication)
    loading = policy_options(arguments) | ({} if arguments.base_vlm is None else {"base_vlm": arguments.base_vlm})
    sizes = {padded_size(number + 1) for number in range(arguments.max_batch_size)}
    policy = Policy.from_pretrained(
        arguments.model,
        arguments.unnorm_key,
        device=arguments.device,
        dtype=arguments.dtype,
        compile={"batch_sizes": sorted(sizes)} if arguments.compile else False,
        quantization=arguments.quantization,
        **loading,
    )
    keys = OpenpiKeys(
        *(tuple(given) if given else None for given in (arguments.openpi_images, arguments.openpi_state)),
        prompt=arguments.openpi_prompt,
    )
    server = PolicyServer(
        policy,
        arguments.model,
        arguments.max_batch_size,
        keys,
        limits=limits,
        api_keys=api_keys,
        authentication=not arguments.no_authentication,
        origins=arguments.origins,
        ping_interval=arguments.ping_interval or None,
        ping_timeout=arguments.ping_timeout or None,
        log_requests=arguments.log_requests,
    )
    _allow_open_files(2 * limits.max_connections)
    asyncio.run(serve(server, arguments.host, arguments.port, tls))
    if server.batcher.calling:  # a forward pass whose result is dropped; Python would wait for its thread
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
