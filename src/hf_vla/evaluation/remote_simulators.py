"""Simulators on other machines for reinforcement learning: `hf-vla simulate` there, `RemoteWorker` here.

The server starts one process with simulators for each connection. Requests and answers are those of
`hf_vla.evaluation.collection`, as msgpack over a WebSocket; images are sent as they are, so that episodes are the same as here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from hf_vla.evaluation.collection import EnvironmentFacts, LocalWorker
from hf_vla.evaluation.environments import environment_class, make_environment
from hf_vla.serving.access import ApiKeys, check_host
from hf_vla.serving.client import API_KEY_VARIABLE
from hf_vla.serving.packing import pack, unpack

__all__ = ["RemoteWorker", "SimulatorServer", "remote_workers"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 256 * 2**20
# Between tries to reach a server that went away.
_PAUSE = 1.0


class _Environments(Mapping):
    """Task → function that makes its environment, for every task of a simulator."""

    def __init__(self, env: str, settings: Mapping[str, Any]):
        self._env, self._settings = env, dict(settings)

    def __getitem__(self, task: str) -> Callable:
        return functools.partial(make_environment, self._env, task, **self._settings)

    def __iter__(self):
        return iter(environment_class(self._env).task_names())

    def __len__(self) -> int:
        return len(environment_class(self._env).task_names())


class SimulatorServer:
    """Serves simulators to `RemoteWorker`s; use it as a context manager, or call `serve_forever`.

    Args:
        env: the simulator that it serves.
        host, port: where it listens; port 0 is any that is free.
        num_workers: processes with simulators, one per connection.
        api_keys: who may connect; without them, this machine only.
        open_to_all: let everybody connect who reaches the address.
        timeout: seconds after which a process that does not answer is given up.

    Raises:
        ValueError: the simulator is unknown, or others than this machine could connect without a key.
        OSError: the address can't be listened on.
    """

    def __init__(
        self,
        env: str,
        host: str = "127.0.0.1",
        port: int = 10094,
        *,
        num_workers: int = 1,
        api_keys: ApiKeys | None = None,
        open_to_all: bool = False,
        timeout: float = 600,
    ):
        environment_class(env)
        check_host(host, allowed=api_keys is not None or open_to_all)
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; it starts at 1")
        self.env, self.num_workers, self._keys, self._timeout = env, num_workers, api_keys, timeout
        self._free, self._number = threading.Semaphore(num_workers), 0
        self._server = serve(
            self._talk, host, port, process_request=self._admit, max_size=_MOST_BYTES, compression=None
        )
        self.port = self._server.socket.getsockname()[1]

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def close(self) -> None:
        """Stop listening, and end the connections."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def __enter__(self) -> SimulatorServer:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
        self._thread.join()

    def _admit(self, connection: ServerConnection, request):
        if self._keys is not None and self._keys.name_of(request.headers.get("Authorization")) is None:
            return connection.respond(401, f"an API key is needed: set {API_KEY_VARIABLE}\n")
        return None

    def _talk(self, connection: ServerConnection) -> None:
        try:
            hello = unpack(connection.recv())
            refusal = self._refusal(hello)
            has_place = not refusal and self._free.acquire(blocking=False)
            try:
                taken = not refusal and not has_place
                connection.send(pack({"refused": refusal, "taken": taken, "processes": self.num_workers}))
                if has_place:
                    self._simulate(connection, hello["settings"])
            finally:
                if has_place:
                    self._free.release()
        except ConnectionClosed:
            pass
        except (ConnectionError, ValueError) as error:  # its process ended; the other side begins again
            logger.warning("a connection is closed: %s", error)

    def _simulate(self, connection: ServerConnection, settings: Mapping[str, Any]) -> None:
        self._number += 1
        worker = LocalWorker(f"process {self._number}", _Environments(self.env, settings), self._timeout)
        try:
            while True:
                request = unpack(connection.recv())
                worker.send(tuple(request))
                connection.send(pack(_sendable(worker.receive())))
        finally:
            worker.close()

    def _refusal(self, hello: Any) -> str:
        if not isinstance(hello, dict) or not isinstance(hello.get("settings"), dict):
            return "this is a server of simulators for hf-vla rl"
        if hello.get("env") != self.env:
            return f"it serves the simulator {self.env}, not {hello.get('env')}"
        return ""


class RemoteWorker:
    """A process with simulators on another machine, for `Collector(workers=)`.

    Args:
        address: "ws://host:port" of `hf-vla simulate`.
        env, settings: the simulator and its settings.
        wait: seconds that `restart` waits for a server that went away, or for a process that is taken.
        timeout: seconds to wait for an answer.
        api_key: the server's API key. Default: the environment variable HF_VLA_API_KEY, if it is set.

    Raises:
        ValueError: the address is not valid, or the server refuses.
        ConnectionError: there is no server, or all its processes are taken.
    """

    def __init__(
        self,
        address: str,
        env: str,
        settings: Mapping[str, Any],
        *,
        wait: float = 30,
        timeout: float = 600,
        api_key: str | None = None,
    ):
        self.name = address
        self._hello = {"env": env, "settings": dict(settings)}
        self._wait, self._timeout = wait, timeout
        self._key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        self._connection = None
        self._connect()

    def restart(self, patient: bool = True) -> None:
        self.close()
        deadline = time.monotonic() + (self._wait if patient else 0)
        while True:
            try:
                return self._connect()
            except ConnectionError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE)

    def _connect(self) -> None:
        self._connection, self.processes = _open(self.name, self._hello, self._key, self._timeout)

    def send(self, request: tuple) -> None:
        if self._connection is None:
            raise ConnectionError(f"{self.name} is not connected")
        try:
            self._connection.send(pack(list(request)))
        except ConnectionClosed as error:
            raise ConnectionError(f"{self.name} closed the connection: {error}") from error

    def receive(self) -> tuple:
        try:
            reply = unpack(self._connection.recv(timeout=self._timeout))
        except (ConnectionClosed, TimeoutError) as error:
            raise ConnectionError(f"{self.name} does not answer: {error or 'time is up'}") from error
        return _received(reply)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def remote_workers(address: str, env: str, settings: Mapping[str, Any], **options: Any) -> list[RemoteWorker]:
    """Connect to all processes of a server, or to none; `options` are for `RemoteWorker`."""
    with contextlib.ExitStack() as on_failure:
        workers = []
        while not workers or len(workers) < workers[0].processes:
            workers.append(RemoteWorker(address, env, settings, **options))
            on_failure.callback(workers[-1].close)
        on_failure.pop_all()
    return workers


def _open(address: str, hello: Mapping[str, Any], key: str | None, timeout: float):
    headers = {"Authorization": f"Api-Key {key}"} if key else None
    try:
        connection = connect(
            address, additional_headers=headers, max_size=_MOST_BYTES, compression=None, ping_timeout=None
        )
    except InvalidURI as error:
        raise ValueError(f"{address} is no address of a server; give ws://host:port") from error
    except InvalidHandshake as error:
        raise ValueError(f"{address} does not accept the connection: {error}; is {API_KEY_VARIABLE} set?") from error
    except (OSError, TimeoutError) as error:
        raise ConnectionError(f"there is no server of simulators at {address}: {error}") from error
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        try:
            connection.send(pack(dict(hello)))
            answer = unpack(connection.recv(timeout=timeout))
        except (ConnectionClosed, TimeoutError) as error:
            raise ConnectionError(f"{address} does not answer: {error}") from error
        if answer["refused"]:
            raise ValueError(f"{address}: {answer['refused']}")
        if answer["taken"]:
            raise ConnectionError(f"all {answer['processes']} processes of {address} are taken")
        on_failure.pop_all()
    return connection, answer["processes"]


def _sendable(reply: tuple) -> list:
    """Return an answer as msgpack takes it: images as arrays, facts as a map."""
    if reply[0] != "answer":
        return list(reply)
    value = reply[1]
    if isinstance(value, EnvironmentFacts):
        return ["facts", dataclasses.asdict(value)]
    if isinstance(value, Mapping):
        return ["observation", _plain(value)]
    rewards, success, observation = value
    return ["result", list(rewards), bool(success), None if observation is None else _plain(observation)]


def _plain(observation: Mapping[str, Any]) -> dict[str, Any]:
    return {**observation, "image": [np.asarray(image) for image in observation["image"]]}


def _received(reply: list) -> tuple:
    kind, *values = reply
    if kind == "facts":
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values[0].items()}
        return "answer", EnvironmentFacts(**fields)
    if kind == "observation":
        return "answer", _restored(values[0])
    if kind == "result":
        rewards, success, observation = values
        return "answer", (tuple(rewards), success, None if observation is None else _restored(observation))
    return tuple(reply)


def _restored(observation: Mapping[str, Any]) -> dict[str, Any]:
    return {**observation, "image": [Image.fromarray(image) for image in observation["image"]]}
