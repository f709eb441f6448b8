"""`PolicyClient` on bad days: interrupted calls, threads, servers that go away, come back as others, or talk nonsense."""

import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_policies
from test_server import SHAPE, in_time, serving  # noqa: F401
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from hf_vla import Policy
from hf_vla.serving import PolicyClient
from hf_vla.serving.client import BadReply
from hf_vla.serving.limits import ServerLimits
from hf_vla.serving.packing import pack, unpack

METADATA = {"action_chunk_size": 3, "action_dim": 2, "stateless": True}


class Echo(Policy):
    """Predicts the first number of each observation's state, after a while."""

    def __init__(self, seconds: float = 0):
        policy = tiny_policies.build("qwen_oft")
        super().__init__(policy.model, policy.processor)
        self.seconds_per_call = seconds
        self.called = threading.Event()

    def infer(self, observations, **options):
        self.called.set()
        time.sleep(self.seconds_per_call)
        return np.stack([np.full(SHAPE, np.ravel(each["state"])[0], np.float32) for each in observations])


def observation(value: float) -> dict:
    return tiny_policies.observation() | {"state": [value, 3.0]}


@contextlib.contextmanager
def answering(answer, port: int = 0, metadata: dict = METADATA):
    """The port of a server that sends what `answer(request)` returns: maps, bytes, text; None closes the connection."""

    def handle(connection):
        connection.send(pack(metadata))
        for message in connection:
            reply = answer(unpack(message))
            if reply is None:
                return
            connection.send(pack(reply) if isinstance(reply, dict) else reply)

    server = serve(handle, "127.0.0.1", port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join()


def reply(request: dict, actions=None, **changed) -> dict:
    number = len(request["payload"]["examples"])
    actions = np.zeros((number, *SHAPE), np.float32) if actions is None else actions
    return {"ok": True, "request_id": request["request_id"], "data": {"actions": actions}} | changed


def test_the_answer_to_an_interrupted_call_is_not_taken_for_the_next():
    policy = Echo(seconds=0.4)

    def interrupt():
        policy.called.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with serving(policy) as (port, _), PolicyClient(port=port) as client:
        policy.called.clear()
        threading.Thread(target=interrupt, daemon=True).start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
        try:
            with pytest.raises(KeyboardInterrupt):
                client.infer(observation(1))
        finally:
            signal.signal(signal.SIGINT, before)
        assert np.unique(client.infer(observation(2))) == 2
        assert np.unique(client.infer(observation(3))) == 3


def test_each_of_several_threads_gets_its_own_answers():
    with serving(Echo(seconds=0.01)) as (port, _), PolicyClient(port=port) as client, ThreadPoolExecutor(4) as threads:

        def ask(value):
            return [np.unique(client.infer(observation(value))).tolist() for _ in range(10)]

        assert list(threads.map(ask, range(4))) == [[[value]] * 10 for value in range(4)]


def test_a_late_answer_is_not_taken_for_the_next():
    policy = Echo(seconds=0.5)
    with serving(policy) as (port, _), PolicyClient(port=port, timeout=0.2) as client:
        with pytest.raises(TimeoutError, match="has not answered in 0.2 s"):
            client.infer(observation(1))
        policy.seconds_per_call = 0
        time.sleep(0.4)  # the server finishes the first call, for nobody
        assert np.unique(client.infer(observation(2))) == 2


def test_a_server_that_does_not_read_is_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as server:

        def accept():
            accepted, protocol = listening.accept()[0], ServerProtocol()
            protocol.receive_data(accepted.recv(2**16))
            protocol.send_response(protocol.accept(protocol.events_received()[0]))
            protocol.send_binary(pack(METADATA))
            for data in protocol.data_to_send():
                accepted.sendall(data)
            return accepted

        accepting = server.submit(accept)
        client = PolicyClient(port=listening.getsockname()[1], timeout=0.3)
        with accepting.result(30), pytest.raises(TimeoutError, match="has not answered in 0.3 s"):
            client.infer({"image": [np.zeros((2000, 2000, 3), np.uint8)] * 2, "lang": "go"})


def test_requests_that_are_too_large():
    large = {"image": [np.zeros((1000, 1000, 3), np.uint8)], "lang": "go", "state": [1.0, 3.0]}
    with serving(Echo(), limits=ServerLimits(max_message_bytes=2**20)) as (port, _), PolicyClient(port=port) as client:
        with pytest.raises(
            ValueError, match=r"request has 30\d\d\d\d\d bytes; the policy server at .* allows 1048576"
        ):
            client.infer(large)
        del client.metadata["max_message_bytes"]  # another server may not tell it: the call is not repeated for ever
        with pytest.raises((ValueError, ConnectionError), match="too large|has gone"):
            client.infer(large)
        assert client.infer(observation(2)).shape == SHAPE


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda request: reply(request, request_id="another"), "is not the answer to request"),
        (lambda request: reply(request, np.full((1, *SHAPE), np.nan)), "hold NaN or infinite values"),
        (lambda request: reply(request, np.zeros((2, *SHAPE))), r"have shape \(2, 3, 2\), expected \(1, 3, 2\)"),
        (lambda request: reply(request, np.zeros((1, 3, 7))), r"have shape \(1, 3, 7\), expected \(1, 3, 2\)"),
        (lambda request: reply(request, data={"actions": "left"}), "actions are 'left'; expected an array"),
        (lambda request: reply(request, data=5), "actions are None"),
        (lambda request: b"\xc1", "holds no msgpack"),
        (lambda request: pack([1]), "it is a list"),
        (lambda request: b"\xdd\x03\x93\x87\x00" + b"\x80" * 60_000_000, "exceeds max_array_len"),
    ],
    ids=["request", "nan", "number", "dimension", "text", "none", "bytes", "list", "bomb"],
)
def test_nonsense_is_one_clear_error(answer, said):
    with answering(answer) as port, PolicyClient(port=port) as client:
        for _ in range(2):  # the second call is not confused by the first
            with pytest.raises(
                BadReply, match=f"reply of the policy server at ws://127.0.0.1:{port} can't be used: .*{said}"
            ):
                client.infer(observation(1))


def test_errors_of_servers():
    says = {"message": "too\x1b[31m red\n" + 5000 * "x"}
    with answering(lambda request: reply(request, ok=False, error=says)) as port, PolicyClient(port=port) as client:
        with pytest.raises(ValueError, match=r"too\\x1b\[31m red\\nxxx.*…$"):
            client.infer(observation(1))
    with answering(lambda request: "only text") as port, PolicyClient(port=port) as client:
        with pytest.raises(ValueError, match="only text"):
            client.infer(observation(1))


def test_a_call_is_repeated_over_a_new_connection_if_that_is_safe():
    calls = []

    def answer(request):
        calls.append(request["payload"].get("seed"))
        return reply(request) if len(calls) % 2 == 0 else None

    with answering(answer) as port, PolicyClient(port=port) as client:
        assert client.infer(observation(1), seed=5).shape == SHAPE
        assert client.infer(observation(1)).shape == SHAPE
    assert calls == [5, 5, None, None]
    calls.clear()
    with answering(answer, metadata={"action_chunk_size": 3}) as port, PolicyClient(port=port) as client:
        assert client.infer(observation(1), seed=5).shape == SHAPE
        with pytest.raises(ConnectionError, match="has gone"):  # that server may have a state
            client.infer(observation(1))
        assert client.infer(observation(1)).shape == SHAPE
    assert calls == [5, 5, None, None]


def test_a_server_that_comes_back_is_waited_for():
    with answering(reply) as port:
        client = PolicyClient(port=port, wait=20)
        assert client.infer(observation(1)).shape == SHAPE
    with ThreadPoolExecutor(1) as robot:
        waiting = robot.submit(client.infer, observation(1))
        time.sleep(0.3)
        assert not waiting.done()
        with answering(reply, port=port):
            assert waiting.result(30).shape == SHAPE
    client.wait = 0
    with pytest.raises(ConnectionError, match="has gone|no policy server"):
        client.infer(observation(1))
    with answering(reply, port=port, metadata=METADATA | {"fingerprint": "other"}):
        with pytest.raises(BadReply, match="serves another policy now: fingerprint was None and is 'other'"):
            client.infer(observation(1))
    client.close()
    with pytest.raises(ConnectionError, match="this client is closed"):
        client.ping()


def test_passwords_are_in_no_message():
    with pytest.raises(ConnectionError) as failed:
        PolicyClient("ws://robot:secret-word@127.0.0.1:1")
    assert "secret-word" not in str(failed.value) and "ws://robot:…@127.0.0.1:1" in str(failed.value)
    for bad in (float("nan"), -1, "soon"):
        with pytest.raises(ValueError, match="timeout is .*; give seconds"):
            PolicyClient(port=1, timeout=bad)
