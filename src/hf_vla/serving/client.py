"""`PolicyClient`: use a policy on a server like a local `hf_vla.Policy`."""

import inspect
import itertools
import os
import random
import ssl
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from ..data.checks import is_integer, is_number
from ..inference.observations import read
from ..inference.trained_inputs import in_camera_order
from ..processing.input_contract import InputContract
from ..utils.episode_seeds import episode_seeds
from ..utils.observations import number_array
from .logs import printable, shown
from .packing import pack, unpack

API_KEY_VARIABLE = "HF_VLA_API_KEY"
# The last websockets for Python 3.8, 13, has neither proxies nor pings in this kind of client.
_SETTINGS = inspect.signature(connect).parameters
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_OPEN_TIMEOUT = 10.0
_UNAUTHORIZED = (401, 403)
_TOO_BIG = 1009
# What must stay the same when a server comes back: a chunk of another policy would be executed as if it were of this one.
_IDENTITY = (
    "fingerprint",
    "framework",
    "action_chunk_size",
    "action_dim",
    "action_names",
    "available_unnorm_keys",
    "default_unnorm_key",
    "input_contracts",
)


class BadReply(ConnectionError):
    """Raised if what a server sends is not an answer to the request: it speaks another protocol, or is broken."""


class PolicyClient:
    """A client of a policy server that speaks StarVLA's protocol, such as `hf-vla serve`.

    A client may be used from several threads; its calls are made one after the other. After any exception during a call,
    including Ctrl-C, it drops its connection, so that a late answer is never taken for that to the next observation. The next
    call connects again.

    Args:
        host, port: address of the server; `host` may also be a whole URL, "ws://host:port" or "wss://…".
        unnorm_key: statistics key for calls that name none. Default: the server's.
        wait: seconds to wait for a server that is not up yet, or that goes away: in a call too, which is then repeated if its
            answer depends on nothing but the request (it has a seed, or the server says that it keeps no state).
        timeout: seconds to wait for a reply.
        api_key: the server's API key. Default: the environment variable HF_VLA_API_KEY, if it is set.
        tls: for wss://, other settings than Python's defaults, for example `ssl.create_default_context(cafile="server.pem")`.
        ping_interval, ping_timeout: seconds between keepalive pings, and that one may be unanswered; None: no pings, no limit.

    Attributes:
        metadata: the server's description of its policy.

    Raises:
        ValueError: `host` is not a valid address, or an argument is not a number of seconds.
        ConnectionError: there is no server, or it closes the connection.
        PermissionError: the server does not accept the API key, or needs one.
        TimeoutError: it does not reply in time.

    ```python
    >>> client = PolicyClient("gpu-machine")  # doctest: +SKIP
    >>> actions = client.infer({"image": [front], "lang": "open the drawer", "state": state})  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 10093,
        unnorm_key: str | None = None,
        *,
        wait: float = 0,
        timeout: float = 60,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 120,
    ) -> None:
        for name, seconds in (("wait", wait), ("timeout", timeout)):
            if not is_number(seconds) or not seconds >= 0:
                raise ValueError(f"{name} is {seconds!r}; give seconds")
        self._url = host if "://" in host else f"ws://{host}:{port}"
        #: The server's URL, without a password; for messages.
        self.address = _without_password(self._url)
        self.unnorm_key, self.wait, self.timeout = unnorm_key, wait, timeout
        api_key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        self._settings: dict[str, Any] = {"ping_interval": ping_interval, "ping_timeout": ping_timeout}
        if api_key:
            self._settings["additional_headers"] = {"Authorization": f"Api-Key {api_key}"}
        if tls is not None:
            self._settings["ssl"] = tls
        self._lock = threading.Lock()
        self._name, self._numbers = uuid.uuid4().hex[:12], itertools.count(1)
        self._connection: ClientConnection | None = None
        self._closed = False
        self.metadata: dict[str, Any] = {}
        self._episode: Iterator[int] | None = None
        with self._lock:
            self._connect(time.monotonic() + wait)

    @property
    def action_horizon(self) -> int:
        return self.metadata["action_chunk_size"]

    @property
    def supports_real_time_chunking(self) -> bool:
        """Whether the server says that its policy takes `previous_chunk` and `inference_delay`."""
        return bool(self.metadata.get("real_time_chunking"))

    @property
    def input_contract(self) -> InputContract:
        """What observations must be like, as far as the server tells it."""
        key = self.unnorm_key or self.metadata.get("default_unnorm_key")
        return InputContract.from_dict((self.metadata.get("input_contracts") or {}).get(key))

    def reset(self, seed: int | None = None) -> None:
        """Start an episode. With a seed, calls with one observation draw the same noise as after `Policy.reset(seed)`."""
        if seed is not None and not is_integer(seed):
            raise ValueError(f"seed is {seed!r}; give a whole number")
        self._episode = None if seed is None else episode_seeds(seed)

    def infer(
        self, observation: Mapping | Sequence[Mapping], unnorm_key: str | None = None, **options: Any
    ) -> np.ndarray:
        """Predict action chunks, as `Policy.infer` does: (T, D) for one observation, (B, T, D) for a list, robot units.

        Args:
            observation: {"image": [PIL images or HWC uint8 arrays], "lang": instruction, "state": (S,)}, as for `Policy.infer`.
            unnorm_key: statistics key; default: the client's.
            options: `seed`, `num_inference_steps`, `previous_chunk`, `inference_delay`, see `Policy.infer`.

        Raises:
            ValueError: the observation is bad, or the server rejects the request.
            ConnectionError: the server has gone and did not come back within `wait` seconds, or serves another policy now.
            BadReply: the server's reply is not a prediction for this request.
            TimeoutError: the server does not reply in time.
        """
        single = isinstance(observation, Mapping)
        contract = self.input_contract
        batch = in_camera_order([observation] if single else observation, contract)
        examples = [_sendable(each) for each in read(batch, contract.state_names)]
        if (previous := options.get("previous_chunk")) is not None:
            previous = number_array(previous, "previous_chunk", contract.action_names)
            options["previous_chunk"] = previous[None] if single else previous
        if self._episode is not None and "seed" not in options:
            options["seed"] = next(self._episode)
        payload = {"examples": examples, "unnorm_key": unnorm_key or self.unnorm_key, **options}
        reply = self._ask({"type": "infer", "payload": payload}, repeatable=options.get("seed") is not None)
        actions = self._actions(reply, len(examples))
        return actions[0] if single else actions

    def ping(self) -> float:
        """Return the round-trip time to the server in seconds."""
        began = time.perf_counter()
        self._ask({"type": "ping"}, repeatable=True)
        return time.perf_counter() - began

    def close(self) -> None:
        """Close the connection; calls are errors from now on."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _ask(self, message: dict[str, Any], repeatable: bool = False) -> dict[str, Any]:
        """Send a request and return its reply."""
        with self._lock:
            number = f"{self._name}-{next(self._numbers)}"
            packed = pack(message | {"request_id": number})
            most = self.metadata.get("max_message_bytes")
            if is_integer(most) and len(packed) > most:
                raise ValueError(
                    f"the request has {len(packed)} bytes; the policy server at {self.address} allows {most}"
                )
            repeatable = repeatable or bool(self.metadata.get("stateless"))
            deadline, gone, pauses = time.monotonic() + self.wait, None, _pauses()
            while True:
                try:
                    if self._connection is None:
                        self._connect(deadline, gone)
                    reply = self._exchange(packed, number)
                    kind = _error_kind(reply)
                    if kind != "busy":
                        break
                    failed = ConnectionError(f"the policy server at {self.address} is busy: {_error_message(reply)}")
                except _Lost as error:
                    first, gone = gone is None, error.__cause__ or error
                    failed = ConnectionError(f"the policy server at {self.address} has gone: {gone}")
                    if first:
                        deadline = time.monotonic() + self.wait
                    if first and repeatable:
                        continue  # it may be the connection alone that was lost, while nothing was asked
                    if not repeatable:
                        raise failed from gone
                if time.monotonic() >= deadline:
                    raise failed from gone
                time.sleep(next(pauses))
        if kind == "timeout":
            raise TimeoutError(f"the policy server at {self.address}: {_error_message(reply)}")
        if kind is not None:
            raise ValueError(f"the policy server at {self.address}: {_error_message(reply)}")
        return reply

    def _exchange(self, packed: bytes, number: str) -> dict[str, Any]:
        """Send a request and receive its reply; whatever goes wrong in between, nothing of it is left for the next call."""
        connection = self._connection
        assert connection is not None
        try:
            began = time.monotonic()
            try:
                connection.send(packed)
            except (ConnectionClosed, OSError) as error:
                if isinstance(error.__cause__, TimeoutError):
                    raise self._late() from error
                raise _lost(error) from error
            reply = self._receive(connection, began + self.timeout)
            if reply.get("request_id") != number:
                raise self._bad(f"it is not the answer to request {number} but {shown(reply)}")
            if _error_kind(reply) == "stopping":
                raise _Lost(_error_message(reply))
        except BaseException:
            self._connection = None
            connection.close_socket()  # without waiting for the server's part of the closing handshake
            raise
        return reply

    def _connect(self, deadline: float, gone: BaseException | None = None) -> None:
        """Connect, again and again until the deadline."""
        open_timeout = _OPEN_TIMEOUT
        for pause in _pauses():
            if self._closed:
                raise ConnectionError("this client is closed; make another one")
            try:
                self._connect_once(open_timeout)
                return
            except _Lost as lost:  # a tunnel may be up before the server is
                error = lost.__cause__ or lost
                left = deadline - time.monotonic()
                if left <= 0:
                    if gone is not None:
                        text = (
                            f"the policy server at {self.address} has gone: {gone}; connecting again: {_said(error)}"
                        )
                    else:
                        text = f"no policy server at {self.address}: {_said(error)}"
                    raise ConnectionError(text) from error
                time.sleep(min(left, pause))
                open_timeout = min(_OPEN_TIMEOUT, max(1, left - pause))

    def _connect_once(self, open_timeout: float) -> None:
        try:
            settings = {"max_size": None, "compression": None, "proxy": None, **self._settings}
            connection = connect(self._url, **{name: settings[name] for name in settings if name in _SETTINGS})
        except (InvalidURI, UnicodeError) as error:
            raise ValueError(f"{self.address!r} is no address of a policy server; give ws://host:port") from error
        except InvalidStatus as error:
            if error.response.status_code in _UNAUTHORIZED:
                raise PermissionError(
                    f"the policy server at {self.address} refuses this client: {_said(error)}; give api_key, or set "
                    f"{API_KEY_VARIABLE}"
                ) from error
            raise _Lost from error
        except (OSError, EOFError, WebSocketException) as error:
            raise _Lost from error
        try:
            connection.socket.settimeout(self.timeout)  # of sending: a server may not read
            metadata = self._receive(connection, time.monotonic() + self.timeout)
            self._check_identity(metadata)
        except BaseException:
            connection.close_socket()
            raise
        self.metadata, self._connection = metadata, connection

    def _check_identity(self, metadata: Mapping) -> None:
        """Refuse another policy than the one of the first connection."""
        for name in _IDENTITY if self.metadata else ():
            before, now = self.metadata.get(name), metadata.get(name)
            if before != now:
                raise BadReply(
                    f"the policy server at {self.address} serves another policy now: {name} was {shown(before)} and is "
                    f"{shown(now)}; make another client to use it"
                )

    def _receive(self, connection: ClientConnection, deadline: float) -> dict[str, Any]:
        try:
            reply = connection.recv(max(0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise self._late() from error
        except (ConnectionClosed, OSError) as error:
            raise _lost(error) from error
        if isinstance(reply, str):
            raise ValueError(f"the policy server at {self.address}: {printable(reply, 1000)}")
        try:
            unpacked = unpack(reply)
        except ValueError as error:
            raise self._bad(str(error)) from error
        if not isinstance(unpacked, dict):
            raise self._bad(f"it is a {type(unpacked).__name__}")
        return unpacked

    def _actions(self, reply: Mapping, number: int) -> np.ndarray:
        """Return the actions (B, T, D) of a reply to `number` observations."""
        data = reply.get("data")
        actions = data.get("actions") if isinstance(data, Mapping) else None
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu" or actions.ndim != 3:
            raise self._bad(f"its actions are {shown(actions)}; expected an array (B, T, D)")
        known = (number, self.metadata.get("action_chunk_size"), self.metadata.get("action_dim"))
        expected = tuple(size if given is None else given for given, size in zip(known, actions.shape, strict=True))
        if actions.shape != expected:
            raise self._bad(f"its actions have shape {actions.shape}, expected {expected}")
        if not np.isfinite(actions).all():
            raise self._bad("its actions hold NaN or infinite values")
        return actions.copy()

    def _bad(self, what: str) -> BadReply:
        return BadReply(f"the reply of the policy server at {self.address} can't be used: {what}")

    def _late(self) -> TimeoutError:
        return TimeoutError(f"the policy server at {self.address} has not answered in {self.timeout:g} s")


class _Lost(Exception):
    """The connection is lost; the cause, if there is one, says why."""


def _lost(error: Exception) -> Exception:
    """Return what a broken connection means for the request."""
    closed = error.rcvd if isinstance(error, ConnectionClosed) else None
    if closed is not None and closed.code == _TOO_BIG:
        return ValueError(f"the request is too large for the policy server: {printable(closed.reason, 200)}")
    return _Lost()


def _pauses() -> Iterator[float]:
    """Yield seconds to wait between attempts: exponential backoff with jitter."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _error_kind(reply: Mapping) -> str | None:
    """Return what kind of error a reply reports, None if it reports none."""
    if reply.get("ok", reply.get("status") == "ok") is True:
        return None
    error = reply.get("error")
    kind = error.get("kind") if isinstance(error, Mapping) else None
    return kind if isinstance(kind, str) else "unknown"


def _error_message(reply: Mapping) -> str:
    error = reply.get("error")
    return printable(error.get("message") if isinstance(error, Mapping) else error, 1000)


def _said(error: BaseException | None) -> str:
    """Return what an error says, and for an HTTP error also what the server says."""
    body = error.response.body if isinstance(error, InvalidStatus) else None
    return f"{error}" + (f": {printable(body.decode(errors='replace').strip(), 200)}" if body else "")


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        name, at, place = parts.netloc.rpartition("@")
        if not at:
            return url
        return urlunsplit(parts._replace(netloc=f"{name.partition(':')[0]}:…@{place}"))
    except ValueError:
        return url.rpartition("@")[2]


def _sendable(observation: dict[str, Any]) -> dict[str, Any]:
    """Return an observation that was read with its images as arrays."""
    return {**observation, "image": [np.asarray(image) for image in observation["image"]]}


__all__ = ["BadReply", "PolicyClient"]
