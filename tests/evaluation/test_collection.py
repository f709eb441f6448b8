"""Collecting episodes: batches, one process or several, a process that dies, environments that can't be learned from."""

import contextlib
import functools
import threading

import numpy as np
import pytest
from toy import SightedPolicy, ToyBandit, ToyEnvironment

from hf_vla.evaluation import StepResult
from hf_vla.evaluation.collection import Collector, Context
from hf_vla.evaluation.remote_simulators import RemoteWorker, SimulatorServer, remote_workers
from hf_vla.plugins import USER_CODE, import_user_code
from hf_vla.serving.access import ApiKeys
from hf_vla.utils.episode_seeds import draw_seed

REACH = {"reach": ToyEnvironment}


class Sampler:
    """`SightedPolicy` in batches, with noise of its own for each draw."""

    def __init__(self, noise=0.0):
        self.policy, self.noise, self.batches = SightedPolicy(horizon=5), noise, []

    def sample(self, observations, seeds):
        self.batches.append(len(observations))
        chunks = [self.policy.infer(observation) for observation in observations]
        drawn = [np.random.default_rng(seed).normal(0, self.noise, (5, 1)).astype(np.float32) for seed in seeds]
        return [(chunk + noise, seed) for chunk, noise, seed in zip(chunks, drawn, seeds, strict=True)]


def told(episode):
    return [(chunk.sample, chunk.rewards, chunk.success) for chunk in episode.chunks]


def test_episodes_come_in_the_order_of_their_contexts_whatever_runs_them():
    contexts = [Context("reach", seed % 4, 100 + seed) for seed in range(10)]
    found = []
    for workers, each in ((1, 1), (2, 3)):
        sampler = Sampler(noise=0.3)
        with Collector(REACH, num_workers=workers, environments_per_worker=each) as collect:
            assert [e.context for e in collect(contexts, sampler)] == contexts
            found.append(collect(contexts, sampler))
        assert max(sampler.batches) == workers * each
    assert [told(e) for e in found[0]] == [told(e) for e in found[1]]
    assert all(e.success for e in found[0])
    same_start = {told(e)[0][1] for e in found[0][::4]}
    assert len(same_start) == 3, "each episode of a group has draws of its own"


def test_an_episode_is_told_chunk_by_chunk():
    with Collector(REACH, execute_steps=3, environments_per_worker=2) as collect:
        (episode,) = collect([Context("reach", 4, 7)], Sampler())  # target 7, one step each
    assert [len(chunk.rewards) for chunk in episode.chunks] == [3, 3, 1]
    assert [chunk.success for chunk in episode.chunks] == [False, False, True]
    assert episode.chunks[0].rewards == (-6.0, -5.0, -4.0) and episode.length == 7
    assert [chunk.sample for chunk in episode.chunks] == [draw_seed(7, number) for number in range(3)]


def test_a_process_that_dies_costs_and_counts_nothing(tmp_path, caplog):
    crash = tmp_path / "crash"
    make = functools.partial(ToyBandit, crash_file=str(crash), chunks=4)
    contexts = [Context("near", seed) for seed in range(6)]

    class Constant:
        def sample(self, observations, seeds):
            if len(self.seen) == 2:
                crash.touch()
            self.seen.append(len(observations))
            return [(np.full((3, 2), 3.0, np.float32), None)] * len(observations)

    policy = Constant()
    policy.seen = []
    with Collector({"near": make}, num_workers=2, environments_per_worker=2, execute_steps=3) as collect:
        episodes = collect(contexts, policy)
        assert collect.repeated == 2
    assert [e.context for e in episodes] == contexts and all(len(e.chunks) == 4 for e in episodes)
    assert "is gone (it ended with exit code 3)" in caplog.text


class Dying(ToyEnvironment):
    def step(self, action):
        if self.steps > 2:
            import os

            os._exit(1)
        return super().step(action)


class DyingAtOnce(ToyEnvironment):
    def step(self, action):
        import os

        os._exit(1)


class WithoutSuccess(ToyEnvironment):
    def step(self, action):
        return StepResult(0.0, False, False, None, {})


class WithoutReward(ToyEnvironment):
    def step(self, action):
        return StepResult(None, False, False, False, {})


class Failing(ToyEnvironment):
    def step(self, action):
        raise RuntimeError("the cable is loose")


@pytest.mark.parametrize(
    "environment, error, message",
    [
        (Dying, ConnectionError, "ended 3 times without finishing an episode"),
        (DyingAtOnce, ConnectionError, "ended 3 times without finishing an episode"),
        (WithoutSuccess, ValueError, "toy tells no success of a step: step.. returned success None"),
        (WithoutReward, ValueError, "toy tells no reward of a step: step.. returned reward None"),
        (Failing, ValueError, "failed: RuntimeError: the cable is loose"),
        (functools.partial(ToyBandit, reward=float("nan")), ValueError, r"the reward of bandit is \[nan, nan, nan\]"),
    ],
)
def test_what_can_not_be_learned_from(environment, error, message):
    class Constant:
        def sample(self, observations, seeds):
            low = 2 if environment is not Dying else 1
            return [(np.full((5, low), 0.1, np.float32), None)] * len(observations)

    task = "near" if isinstance(environment, functools.partial) else "reach"
    execute = 3 if task == "near" else 5
    with Collector({task: environment}, execute_steps=execute) as collect, pytest.raises(error, match=message):
        collect([Context(task, 0)], Constant())


def test_a_process_that_dies_once_as_it_is_tried(tmp_path):
    crash = tmp_path / "crash"
    crash.touch()
    with Collector({"near": functools.partial(ToyBandit, crash_file=str(crash))}) as collect:
        assert collect.facts("near").name == "bandit" and collect.repeated == 0


class FailingOnce(ToyEnvironment):
    """Fails in its first episode, and not later."""

    failed = False

    def step(self, action):
        if self.steps and not FailingOnce.failed:
            FailingOnce.failed = True
            raise RuntimeError("the cable is loose")
        return super().step(action)


def test_an_error_leaves_no_answers_for_the_next_call():
    contexts = [Context("reach", seed) for seed in range(4)]
    with Collector({"reach": FailingOnce}, environments_per_worker=3) as collect:
        with pytest.raises(ValueError, match="the cable is loose"):
            collect(contexts, Sampler())
        episodes = collect(contexts, Sampler())
    assert [e.length for e in episodes] == [3, 4, 5, 6]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_workers is 0"):
        Collector(REACH, num_workers=0)
    with Collector(REACH) as collect, pytest.raises(ValueError, match="no environment of fly; there are reach"):
        collect([Context("fly", 0)], Sampler())


class TestOtherMachines:
    """Simulators behind a server: here in a process of this machine."""

    @pytest.fixture(scope="class")
    def plugin(self, tmp_path_factory):
        plugin = tmp_path_factory.mktemp("plugin") / "toy_plugin.py"
        plugin.write_text("import hf_vla, toy\n\nhf_vla.register_environment('toy', toy.ToyEnvironment)\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(USER_CODE, "")
            import_user_code(str(plugin))  # the server's processes import it too
            yield

    @pytest.fixture
    def served(self, plugin):
        with SimulatorServer("toy", port=0, num_workers=2) as server:
            yield server

    def test_episodes_are_the_same_as_here(self, served):
        contexts = [Context("reach", seed % 4, seed) for seed in range(6)]
        workers = remote_workers(f"ws://127.0.0.1:{served.port}", "toy", {"max_steps": 20})
        assert len(workers) == 2
        make = functools.partial(ToyEnvironment, max_steps=20)
        with Collector({"reach": make}, num_workers=0, workers=workers, environments_per_worker=2) as collect:
            there = collect(contexts, Sampler(noise=0.3))
        with Collector({"reach": make}) as collect:
            assert [told(e) for e in collect(contexts, Sampler(noise=0.3))] == [told(e) for e in there]

    def test_a_machine_that_goes_away_leaves_its_episodes_to_the_others(self, served, caplog):
        (worker, other) = remote_workers(f"ws://127.0.0.1:{served.port}", "toy", {}, wait=0)
        other.close()
        contexts = [Context("reach", seed % 4, seed) for seed in range(6)]
        policy = Sampler()
        original = policy.sample

        def stops(observations, seeds):
            if len(policy.batches) == 1:
                served.close()
                with contextlib.suppress(OSError):  # closed already
                    worker._connection.socket.shutdown(2)
            return original(observations, seeds)

        policy.sample = stops
        with Collector(REACH, workers=[worker], environments_per_worker=2) as collect:
            episodes = collect(contexts, policy)
            assert collect.repeated == 2
        assert all(e.success for e in episodes) and "stays away" in caplog.text

    def test_all_machines_are_gone(self, plugin):
        with SimulatorServer("toy", port=0) as server:
            (worker,) = remote_workers(f"ws://127.0.0.1:{server.port}", "toy", {}, wait=0)
        restart, waits = worker.restart, []
        worker.restart = lambda patient=True: waits.append(patient) or restart(patient)
        with Collector(REACH, num_workers=0, workers=[worker]) as collect:
            for _ in range(2):
                with pytest.raises(ConnectionError, match="no process with simulators is left"):
                    collect([Context("reach", 0)], Sampler())
        assert waits == [True, False], "what has stayed away is not waited for again"

    def test_all_processes_of_a_server_or_none(self, served, monkeypatch):
        address, closed = f"ws://127.0.0.1:{served.port}", []
        with contextlib.closing(RemoteWorker(address, "toy", {})):
            close = RemoteWorker.close
            monkeypatch.setattr(RemoteWorker, "close", lambda worker: closed.append(worker) or close(worker))
            with pytest.raises(ConnectionError, match="all 2 processes of .* are taken"):
                remote_workers(address, "toy", {})
            assert len(closed) == 1

    def test_a_collector_that_was_closed_connects_again(self, served):
        worker = RemoteWorker(f"ws://127.0.0.1:{served.port}", "toy", {})
        with Collector(REACH, num_workers=0, workers=[worker]) as collect:
            assert collect([Context("reach", 0)], Sampler())[0].success
        with collect:
            assert collect([Context("reach", 0)], Sampler())[0].success
            assert collect.repeated == 0

    def test_who_comes_while_all_processes_are_taken(self, plugin):
        with SimulatorServer("toy", port=0) as server:
            address = f"ws://127.0.0.1:{server.port}"
            first = RemoteWorker(address, "toy", {})
            with pytest.raises(ConnectionError, match="all 1 processes of .* are taken"):
                RemoteWorker(address, "toy", {})
            old, first._connection = first._connection, None
            with pytest.raises(ConnectionError, match="are taken"):
                first.restart(patient=False)  # as if the server had not noticed that the old connection is gone
            closing = threading.Timer(0.5, old.close)
            closing.start()
            first.restart()  # waits
            closing.join()
            first.send(("facts", "reach", 0))
            assert first.receive()[0] == "answer"
            first.close()

    def test_who_is_refused(self, served):
        address = f"ws://127.0.0.1:{served.port}"
        with pytest.raises(ValueError, match="it serves the simulator toy, not metaworld"):
            RemoteWorker(address, "metaworld", {})
        with pytest.raises(ValueError, match="no address of a server"):
            RemoteWorker("gpu-machine", "toy", {})
        with pytest.raises(ConnectionError, match="no server of simulators at ws://127.0.0.1:1"):
            RemoteWorker("ws://127.0.0.1:1", "toy", {})
        with pytest.raises(ValueError, match="give API keys"):
            SimulatorServer("toy", "0.0.0.0", 0)
        keys = ApiKeys({"one": "k" * 20})
        with SimulatorServer("toy", port=0, api_keys=keys) as server:
            address = f"ws://127.0.0.1:{server.port}"
            with pytest.raises(ValueError, match="does not accept the connection.*401"):
                RemoteWorker(address, "toy", {})
            RemoteWorker(address, "toy", {}, api_key="k" * 20).close()
