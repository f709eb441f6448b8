"""`PolicyServer`: serve a policy over WebSocket, to StarVLA's and openpi's clients on the same port."""

import asyncio
import functools
import http
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from ..inference.policy import Policy
from ..processing.input_contract import InputContract
from .access import ApiKeys, check_host
from .batching import BadPrediction, Batcher, Busy, Stopping, TimedOut
from .connections import Client, ClientConnection, ConnectionPool
from .limits import ServerLimits
from .logs import fields, printable
from .metrics import CONTENT_TYPE, Metrics
from .packing import pack
from .protocols import OpenpiKeys, answer_starvla, is_starvla, refuse_starvla
from .readiness import check_parts, try_policy
from .reading import read

logger = logging.getLogger(__name__)

_INTERNAL_ERROR = 1011
#: Threads that unpack and check messages, so that the event loop goes on answering others.
_READERS = 4
#: Calls of the policy that fail in a row before /readyz says so.
_FAILURES = 3
#: Errors of a request that say all that a client may know, and their names in metrics and log.
_OUTCOMES = {
    ValueError: "refused",
    Busy: "busy",
    TimedOut: "timeout",
    Stopping: "stopping",
    BadPrediction: "failed",
}


class _Fatal(Exception):
    """An error that is reported as openpi's clients expect: a text frame, then the connection closes."""


class PolicyServer:
    """Answers observations with actions in robot units.

    Every connection first receives `metadata`. Requests of several connections are batched, see `Batcher`.

    Args:
        policy: the policy; its statistics key is used if a request names none.
        name: name of the policy, for `metadata`.
        max_batch_size: observations per batch.
        openpi_keys: which keys of openpi's observations are cameras and state.
        limits: what clients may ask for.
        api_keys: keys that clients must show; without, all who reach the port may use the policy.
        authentication: False to listen to other machines without keys.
        origins: web pages whose scripts may connect, such as "https://example.org"; default: none.
        ping_interval, ping_timeout: seconds between keepalive pings, and that a client may leave one unanswered; None: no pings,
            no limit. A simulator that loads a scene may stop its client's threads for a minute.
        log_requests: log each request, not only those that fail.

    Attributes:
        metadata: what clients get when they connect.
        metrics: what /metrics shows.
        ready: whether the policy predicts.

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
        *,
        limits: ServerLimits | None = None,
        api_keys: ApiKeys | None = None,
        authentication: bool = True,
        origins: Sequence[str] = (),
        ping_interval: float | None = 20,
        ping_timeout: float | None = 120,
        log_requests: bool = False,
    ) -> None:
        self.policy = policy
        self.openpi_keys = replace(openpi_keys or OpenpiKeys(), cameras=policy.input_contract.cameras)
        self.limits = limits or ServerLimits()
        self.api_keys, self.authentication, self.origins = api_keys, authentication, origins
        self.keepalive = {"ping_interval": ping_interval, "ping_timeout": ping_timeout}
        self.log_requests = log_requests
        self.metrics = Metrics()
        self.batcher = Batcher(policy, max_batch_size, self.limits, self.metrics)
        self.metadata = _metadata(policy, name) | {"max_message_bytes": self.limits.max_message_bytes}
        self._predicts = True
        self._pool = ConnectionPool(self.limits, self.metrics)
        self._readers: ThreadPoolExecutor | None = None

    @property
    def ready(self) -> bool:
        return self._predicts and self.batcher.failures < _FAILURES

    async def try_policy(self) -> None:
        """Predict once, before all requests; /readyz answers 503 until then.

        Raises:
            ValueError: the policy can't predict.
        """
        self._predicts = False
        await self.batcher.run(try_policy, self.policy)
        self._predicts = True

    @asynccontextmanager
    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None):
        """Run the server inside the context, which yields a `websockets.asyncio.server.Server`; port 0 picks a free port.

        Args:
            host, port: address to listen on.
            tls: certificate and key, to serve wss:// and https://.

        Raises:
            OSError: the port is in use.
            ValueError: other machines reach the address, and there are neither keys nor `authentication=False`.
        """
        check_host(host, self.api_keys is not None or not self.authentication)
        # A batcher cannot be used again after `close`, so each call of `listen` makes a new one.
        self.batcher = Batcher(self.policy, self.batcher.max_batch_size, self.limits, self.metrics)
        self._pool = ConnectionPool(self.limits, self.metrics)
        # Compression hardly shrinks camera images, and takes longer than sending them over a fast network.
        listening = serve(
            self._serve,
            host,
            port,
            ssl=tls,
            origins=[None, *self.origins],
            process_request=self._process_request,
            create_connection=functools.partial(ClientConnection, pool=self._pool),
            max_size=self.limits.max_message_bytes,
            max_queue=1,
            compression=None,
            **self.keepalive,
        )
        with ThreadPoolExecutor(_READERS, thread_name_prefix="reader") as self._readers:
            async with listening as server:
                sweeping = asyncio.create_task(self._pool.drop_stalled())
                try:
                    yield server
                finally:
                    sweeping.cancel()
                    self.batcher.close()  # first: closing the connections waits for their replies

    def _process_request(self, connection: ClientConnection, request):
        """Answer plain HTTP; admit a client or tell it why not."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            status = http.HTTPStatus.OK if self.ready else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, "ready\n" if self.ready else "the policy does not predict\n")
        address = str(connection.remote_address[0])
        client = address
        if self.api_keys is not None:
            key = self.api_keys.name_of(request.headers.get("Authorization"))
            if key is None:
                return self._refuse_connection(
                    connection,
                    http.HTTPStatus.UNAUTHORIZED,
                    "key",
                    "this server needs an API key, in the header 'Authorization: Api-Key KEY'",
                )
            client = key if len(self.api_keys) > 1 else address
        if path == "/metrics":
            self.metrics.ready.set(self.ready)
            response = connection.respond(http.HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if (reason := self._pool.refusal(client)) is not None:
            return self._refuse_connection(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "connections", reason)
        connection.client_name = client
        return None

    def _refuse_connection(self, connection, status: http.HTTPStatus, reason: str, text: str):
        self.metrics.refused_connections.labels(reason).inc()
        logger.debug("%s", fields(event="refused", client=connection.remote_address[0], reason=text))
        response = connection.respond(status, text + "\n")
        if status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Api-Key"
        return response

    async def _serve(self, connection: ClientConnection) -> None:
        self._pool.admit(connection, connection.client_name)
        name = f"{connection.remote_address[0]}:{connection.remote_address[1]}"
        logger.info("%s", fields(event="connected", client=name, key=self._key_name(connection)))
        try:
            await self._send(connection, pack(self.metadata))
            gone = asyncio.ensure_future(connection.wait_closed())
            try:
                async for message in connection:
                    if not await self._serve_message(connection, message, name, gone):
                        break
            except _Fatal as error:
                await self._send(connection, str(error))
                await connection.close(_INTERNAL_ERROR, "see the last message")
            finally:
                gone.cancel()
        except ConnectionClosed:
            pass
        finally:
            self._pool.release(connection)
        logger.info("%s", fields(event="disconnected", client=name))

    async def _serve_message(self, connection, message: bytes | str, name: str, gone: asyncio.Future) -> bool:
        """Answer a message; return whether the client is still there."""
        connection.answering = True
        self.metrics.received.inc(len(message))
        self.metrics.seconds.labels("receive").observe(time.monotonic() - connection.since)
        answer = asyncio.ensure_future(self._answer(connection.client, message, name))
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():  # the client has disconnected
            answer.cancel()
            return False
        await self._send(connection, answer.result())
        connection.answered(len(message))
        return True

    async def _send(self, connection: ClientConnection, message: bytes | str) -> None:
        """Send a message to a client that may have stopped reading."""
        self.metrics.sent.inc(len(message))
        try:
            async with asyncio.timeout(self.limits.request_timeout):
                await connection.send(message)
        except TimeoutError:
            self.metrics.refused_connections.labels("time").inc()
            connection.transport.abort()
            raise ConnectionClosed(None, None) from None

    async def _answer(self, client: Client, packed: bytes | str, name: str) -> bytes:
        began = time.perf_counter()
        record = {"client": name, "bytes_in": len(packed)}
        async with client.reading:
            reading = functools.partial(read, packed, self.limits, self.openpi_keys, self.batcher.prepare)
            message, request, error = await asyncio.get_running_loop().run_in_executor(self._readers, reading)
        self.metrics.seconds.labels("read").observe(time.perf_counter() - began)
        protocol = "unknown" if message is None else "starvla" if is_starvla(message) else "openpi"
        if protocol == "starvla":
            record["id"] = message.get("request_id")
        actions = None
        if request is not None:
            record["examples"] = len(request.observations)
            try:
                actions = await self.batcher.infer(
                    request.observations, request.unnorm_key, client=client.name, **request.options
                )
            except Exception as raised:
                error = raised
        seconds = time.perf_counter() - began
        self.metrics.seconds.labels("answer").observe(seconds)
        if error is None:
            outcome = "ping" if request is None else "ok"
            self._record(client, protocol, outcome, record | {"seconds": seconds})
            if protocol == "starvla":
                return pack(answer_starvla(message, actions))
            return pack({"actions": actions[0], "server_timing": {"infer_ms": 1e3 * seconds}})
        outcome, told = ("unreadable", error) if message is None else _told(error)
        self._record(client, protocol, outcome, record | {"seconds": seconds, "error": error})
        if protocol == "starvla":
            return pack(refuse_starvla(message, told, outcome))
        # If the protocol is unknown: clients of both treat a text frame as an error.
        raise _Fatal(printable(told, 1000)) from error

    def _record(self, client: Client, protocol: str, outcome: str, record: Mapping[str, Any]) -> None:
        self.metrics.requests.labels(protocol, outcome).inc()
        if outcome in ("ok", "ping"):
            level = logging.INFO if self.log_requests else logging.DEBUG
        else:
            level = logging.ERROR if outcome == "failed" else logging.WARNING
        if not logger.isEnabledFor(level) or (level >= logging.WARNING and not client.may_be_logged()):
            return
        error = record.get("error")
        internal = outcome == "failed" and not isinstance(error, BadPrediction)
        line = fields(event="request", protocol=protocol, outcome=outcome, **record)
        logger.log(level, "%s", line, exc_info=error if internal else None)

    def _key_name(self, connection: ClientConnection) -> str | None:
        return connection.client.name if self.api_keys is not None and len(self.api_keys) > 1 else None


def _told(error: Exception) -> tuple[str, Exception]:
    """Return an error's outcome, and what the client is told: its own mistakes in full, ours only by type."""
    for kind, outcome in _OUTCOMES.items():
        if isinstance(error, kind):
            return outcome, error
    return "failed", RuntimeError(
        f"the server failed at this request ({type(error).__name__}); its log has the details"
    )


def _metadata(policy: Policy, name: str | None) -> dict[str, Any]:
    keys = sorted(policy.processor.statistics)
    size = policy.processor.image_size
    default = policy.unnorm_key or (keys[0] if len(keys) == 1 else None)
    contracts = {key: _contract(policy, key) for key in keys}
    if size is None and default is not None:
        size = contracts[default].image_size
    return {
        "model": name,
        "fingerprint": getattr(policy, "fingerprint", None),
        "framework": policy.model.config.model_type,
        "action_chunk_size": policy.action_horizon,
        "action_dim": policy.model.config.action_dim,
        "action_names": {key: list(names) for key, names in policy.processor.action_names.items()},
        "available_unnorm_keys": keys,
        "default_unnorm_key": default,
        # StarVLA's order is height, width; ours is width, height.
        "training_obs_image_size": None if size is None else [int(size[1]), int(size[0])],
        # What observations must be like, see `InputContract`; None is what is not known.
        "input_contracts": {key: contract.to_dict() for key, contract in contracts.items()},
        # Whether a request may have previous_chunk and inference_delay.
        "real_time_chunking": policy.supports_real_time_chunking,
        # A request's answer depends on nothing but the request and, without a seed, on chance: it may be repeated.
        "stateless": True,
    }


def _contract(policy: Policy, key: str) -> InputContract:
    """Return the contract of one key; with `ignore_state`, a client may send a state or not."""
    contract = Policy(policy.model, policy.processor, key).input_contract
    return replace(contract, uses_state=None) if policy.ignore_state and not contract.uses_state else contract


async def run(
    server: PolicyServer, host: str, port: int, stopped: asyncio.Event, tls: ssl.SSLContext | None = None
) -> None:
    """Check the policy, and serve it until `stopped` is set.

    Raises:
        OSError: the port is in use.
        ValueError: the policy can't predict, or other machines reach the address without authentication.
    """
    check_parts(server.policy)
    async with server.listen(host, port, tls=tls) as listening:
        address = listening.sockets[0].getsockname()
        trial = asyncio.create_task(server.try_policy())
        logger.info("serving on %s://%s:%d", "ws" if tls is None else "wss", address[0], address[1])
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({trial, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if trial.done():
            trial.result()
        await stopping


__all__ = ["PolicyServer", "run"]
