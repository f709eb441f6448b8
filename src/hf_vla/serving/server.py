"""`PolicyServer`: a policy behind a WebSocket, for StarVLA's clients and openpi's on one port."""

import asyncio
import http
import logging
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ..inference.policy import Policy
from .batching import Batcher, Stopping
from .packing import pack, unpack
from .protocols import (
    OpenpiKeys,
    Request,
    answer_starvla,
    is_starvla,
    read_openpi,
    read_starvla,
    refuse_starvla,
)

logger = logging.getLogger(__name__)

_MAX_MESSAGE = 64 * 2**20  # bytes
_INTERNAL_ERROR = 1011


class _Fatal(Exception):
    """An error that openpi's clients learn of by a text frame and the end of the connection."""


class PolicyServer:
    """Answers observations with actions in robot units.

    Every connection first gets `metadata`. Requests of several connections are predicted together, see `Batcher`. There is no
    authentication: whoever reaches the port can use the policy.

    Args:
        policy: with the statistics key that holds where a request names none.
        name: of the policy, for `metadata`.
        max_batch_size: observations predicted together.
        openpi_keys: which keys of openpi's observations are cameras and state.

    ```python
    >>> async with PolicyServer(policy).listen("127.0.0.1", 10093) as server:  # doctest: +SKIP
    ...     await server.serve_forever()
    ```
    """

    def __init__(
        self,
        policy: Policy,
        name: str | None = None,
        max_batch_size: int = 8,
        openpi_keys: OpenpiKeys | None = None,
    ) -> None:
        self.policy = policy
        self.openpi_keys = openpi_keys or OpenpiKeys()
        self.batcher = Batcher(policy, max_batch_size)
        self.metadata = _metadata(policy, name)

    @asynccontextmanager
    async def listen(self, host: str, port: int):
        """The running server, a `websockets.asyncio.server.Server`; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        # A thread that was closed takes no more work: each listening has its own.
        self.batcher = Batcher(self.policy, self.batcher.max_batch_size)
        # Camera images hardly get smaller by compression, which takes longer than a fast network.
        listening = serve(
            self._serve,
            host,
            port,
            process_request=_health,
            max_size=_MAX_MESSAGE,
            max_queue=1,
            compression=None,
        )
        async with listening as server:
            try:
                yield server
            finally:
                self.batcher.close()  # first: closing the connections waits for their answers

    async def _serve(self, connection: ServerConnection) -> None:
        robot = f"{connection.remote_address[0]}:{connection.remote_address[1]}"
        logger.info("%s has connected", robot)
        try:
            await connection.send(pack(self.metadata))
            gone = asyncio.ensure_future(connection.wait_closed())
            try:
                async for message in connection:
                    answer = asyncio.ensure_future(self._answer(message))
                    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():  # nobody is there to predict for
                        answer.cancel()
                        break
                    await connection.send(answer.result())
            except _Fatal as error:
                await connection.send(str(error))
                await connection.close(_INTERNAL_ERROR, "see the last message")
            finally:
                gone.cancel()
        except ConnectionClosed:
            pass
        logger.info("%s has gone", robot)

    async def _answer(self, packed: bytes | str) -> bytes:
        began = time.perf_counter()
        try:
            message = unpack(packed) if isinstance(packed, bytes) else packed
            if not isinstance(message, Mapping):
                raise ValueError(f"a message must be a msgpack map, got a {type(message).__name__}")
        except ValueError as error:  # whose protocol it is, nobody knows: both take a text frame for an error
            raise _Fatal(str(error)) from error
        if is_starvla(message):
            try:
                request = read_starvla(message)
                return pack(answer_starvla(message, None if request is None else await self._infer(request)))
            except Exception as error:
                return pack(refuse_starvla(message, _told(error)))
        try:
            actions = await self._infer(read_openpi(message, self.openpi_keys))
        except Exception as error:
            raise _Fatal(str(_told(error))) from error
        timing = {"infer_ms": 1e3 * (time.perf_counter() - began)}
        return pack({"actions": actions[0], "server_timing": timing})

    async def _infer(self, request: Request):
        return await self.batcher.infer(request.observations, request.unnorm_key, **request.options)


def _told(error: Exception) -> Exception:
    """What the client is told: its own mistake in full, of ours that it was ours; the log has the rest."""
    if isinstance(error, ValueError):
        logger.warning("a request was refused: %s", error)
        return error
    if isinstance(error, Stopping):
        return error
    logger.error("a request failed", exc_info=error)
    return RuntimeError(f"the server failed at this request ({type(error).__name__}); its log has the details")


def _metadata(policy: Policy, name: str | None) -> dict[str, Any]:
    keys = sorted(policy.processor.statistics)
    size = policy.processor.image_size
    default = policy.unnorm_key or (keys[0] if len(keys) == 1 else None)
    return {
        "model": name,
        "framework": policy.model.config.model_type,
        "action_chunk_size": policy.action_horizon,
        "action_dim": policy.model.config.action_dim,
        "action_names": {key: list(names) for key, names in policy.processor.action_names.items()},
        "available_unnorm_keys": keys,
        "default_unnorm_key": default,
        # Height and width, as StarVLA has it; ours is width and height.
        "training_obs_image_size": None if size is None else [int(size[1]), int(size[0])],
    }


def _health(connection: ServerConnection, request):
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


async def run(server: PolicyServer, host: str, port: int, stopped: asyncio.Event) -> None:
    """Serve until `stopped` is set."""
    async with server.listen(host, port) as listening:
        address = listening.sockets[0].getsockname()
        logger.info("serving on ws://%s:%d", address[0], address[1])
        await stopped.wait()


__all__ = ["PolicyServer", "run"]
