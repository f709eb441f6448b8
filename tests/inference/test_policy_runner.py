"""One action per control step: sequences by hand, a thread that infers meanwhile, its errors, real policies."""

import itertools
import logging
import math
import threading

import numpy as np
import pytest
import tiny_policies

from hf_vla.inference import ChunkRule, PolicyRunner
from hf_vla.utils.once import warn_once

STEPS = 12


class Numbered:
    """Action i of the chunk that is asked for at step t is 100 t + i; observations tell t."""

    def __init__(self, horizon=8):
        self.horizon, self.asked, self.seeds = horizon, [], []

    def reset(self, seed=None):
        self.seeds.append(seed)

    def infer(self, observation, **options):
        self.asked.append((observation["step"], options))
        return np.float32(100 * observation["step"] + np.arange(self.horizon))[:, None]


class Continuing(Numbered):
    """A policy with real-time chunking: frozen actions come back as they were given."""

    supports_real_time_chunking = True

    def infer(self, observation, previous_chunk=None, inference_delay=0):
        chunk = super().infer(observation, previous_chunk=previous_chunk, inference_delay=inference_delay)
        chunk[:inference_delay] = previous_chunk[:inference_delay] if inference_delay else chunk[:0]
        return chunk


def see(step, lang="go"):
    return {"step": step, "lang": lang}


def run(policy, rule, steps=STEPS, lang=lambda step: "go", **settings):
    with PolicyRunner(policy, rule, **settings) as runner:
        runner.reset(seed=3)
        return [float(runner.act(see(step, lang(step)))[0]) for step in range(steps)]


def simulated(policy, rule, **settings):
    return run(policy, rule, in_background=False, **settings)


def steps_of(policy):
    return [step for step, _ in policy.asked]


@pytest.mark.parametrize(
    ("rule", "asked", "actions"),
    [
        (ChunkRule(), [0, 5, 10], [0, 1, 2, 3, 4, 500, 501, 502, 503, 504, 1000, 1001]),
        (ChunkRule(execute=8), [0, 8], [0, 1, 2, 3, 4, 5, 6, 7, 800, 801, 802, 803]),
        (ChunkRule(execute=1), list(range(12)), [100 * step for step in range(12)]),
        # Asked at 4, there at 6: until then the old chunk goes on, and the new one's first two actions are never executed.
        (ChunkRule(execute=4, inference_delay=2), [0, 4, 8], [0, 1, 2, 3, 4, 5, 402, 403, 404, 405, 802, 803]),
        # The delay is longer than what is to be executed: the next request goes out as soon as a chunk is there.
        (
            ChunkRule(execute=1, inference_delay=3),
            [0, 1, 4, 7, 10],
            [0, 1, 2, 3, 103, 104, 105, 403, 404, 405, 703, 704],
        ),
        (ChunkRule(inference_delay=4), [0, 4, 8], [0, 1, 2, 3, 4, 5, 6, 7, 404, 405, 406, 407]),
    ],
)
def test_open_loop_by_hand(rule, asked, actions):
    policy = Numbered()
    assert simulated(policy, rule) == actions
    assert steps_of(policy) == asked and policy.seeds == [3]


def test_temporal_ensemble_by_hand():
    w = math.exp(-0.5)
    actions = simulated(Numbered(3), ChunkRule("temporal_ensemble", decay=0.5), steps=4)
    # At step 1 chunk 0 says 1, chunk 1 says 100; at step 3 chunks 1, 2 and 3 are left.
    expected = [0, (1 + 100 * w) / (1 + w), (2 + 101 * w + 200 * w**2) / (1 + w + w**2)]
    assert actions == pytest.approx([*expected, (102 + 201 * w + 300 * w**2) / (1 + w + w**2)])
    late = simulated(Numbered(4), ChunkRule("temporal_ensemble", decay=0.0, inference_delay=2), steps=6)
    # Asked at 0, 1, 3, 5; chunk 1 is there at 3, chunk 3 at 5.
    assert late == pytest.approx([0, 1, 2, (3 + 102) / 2, 103, 302])


def test_adaptive_ensemble_by_hand():
    # One dimension, positive: all agree, so the mean is plain; of three chunks, the last two count.
    actions = simulated(Numbered(3), ChunkRule("adaptive_ensemble", length=2), steps=4)
    assert actions == pytest.approx([0, (1 + 100) / 2, (101 + 200) / 2, (201 + 300) / 2])
    chunked = simulated(Numbered(4), ChunkRule("adaptive_ensemble", execute=2, alpha=0.0), steps=6)
    assert chunked == pytest.approx([0, 1, (2 + 200) / 2, (3 + 201) / 2, (202 + 400) / 2, (203 + 401) / 2])


def test_real_time_chunking_by_hand():
    policy = Continuing()
    actions = simulated(policy, ChunkRule("real_time_chunking", execute=4, inference_delay=2))
    assert actions == [0, 1, 2, 3, 4, 5, 402, 403, 404, 405, 802, 803]
    assert steps_of(policy) == [0, 4, 8]
    given = [(options["previous_chunk"], options["inference_delay"]) for _, options in policy.asked]
    assert given[0] == (None, 0)  # the first chunk continues nothing
    assert (given[1][0][:, 0].tolist(), given[1][1]) == ([4, 5, 6, 7], 2)
    # Of the chunk of step 4, what is left at step 8; its first two actions were those of the chunk before.
    assert (given[2][0][:, 0].tolist(), given[2][1]) == ([404, 405, 406, 407], 2)


def test_a_policy_without_real_time_chunking(caplog):
    warn_once.cache_clear()
    rule = ChunkRule("real_time_chunking", execute=4, inference_delay=2)
    with caplog.at_level(logging.WARNING):
        actions = simulated(policy := Numbered(), rule)
    assert "Numbered has no real-time chunking" in caplog.text and "as in the mode open_loop" in caplog.text
    assert actions == simulated(Numbered(), ChunkRule(execute=4, inference_delay=2))
    assert all(options == {} for _, options in policy.asked)


def test_a_new_instruction_drops_the_chunks():
    policy = Numbered()
    actions = simulated(
        policy, ChunkRule(execute=4, inference_delay=2), lang=lambda step: "go" if step < 5 else "stop"
    )
    # The chunk that was asked for at step 4 is for the old instruction; the robot waits for the one of step 5.
    assert actions == [0, 1, 2, 3, 4, 500, 501, 502, 503, 504, 505, 902]
    assert steps_of(policy) == [0, 4, 5, 9]


def test_observations_are_needed_only_when_the_policy_is_asked():
    runner = PolicyRunner(Numbered(), ChunkRule(execute=3), in_background=False)
    runner.reset()
    asks, new = [], []
    for step in range(7):
        asks.append(runner.asks)
        runner.act(see(step) if runner.asks else None)
        new.append(runner.new_chunk)
    assert asks == new == [True, False, False, True, False, False, True]
    runner.drop_chunks()
    with pytest.raises(ValueError, match="give the observation"):
        runner.act(None)


RULES = [
    ChunkRule(execute=4, inference_delay=2),
    ChunkRule(execute=3, inference_delay=0),
    ChunkRule(execute=1, inference_delay=3),
    ChunkRule("temporal_ensemble", inference_delay=2),
    ChunkRule("adaptive_ensemble", length=2, inference_delay=1),
    ChunkRule("real_time_chunking", execute=4, inference_delay=3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.mode}-{rule.execute}-{rule.inference_delay}")
def test_a_thread_does_what_a_simulator_with_this_delay_does(rule):
    threads = threading.active_count()
    one, other = Continuing(), Continuing()
    assert run(one, rule) == simulated(other, rule)
    assert steps_of(one) == steps_of(other)
    assert threading.active_count() == threads


class Held(Continuing):
    """Answers when the test lets it, one permit per chunk."""

    def __init__(self, horizon=8):
        super().__init__(horizon)
        self.permits, self.began = threading.Semaphore(1), threading.Semaphore(0)
        self.thread = None

    def infer(self, observation, **options):
        self.thread = threading.current_thread()
        self.began.release()
        assert self.permits.acquire(timeout=30)
        return super().infer(observation, **options)


def answered(policy, runner):
    """Let the policy answer, and wait until the answer is there."""
    policy.permits.release()
    runner._pending.exception(timeout=30)


def test_the_robot_moves_while_the_policy_thinks():
    policy = Held()
    with PolicyRunner(policy, ChunkRule("real_time_chunking", execute=3)) as runner:
        runner.reset()
        actions = [float(runner.act(see(step))[0]) for step in range(5)]  # at step 3 it is asked again
        assert actions == [0, 1, 2, 3, 4] and policy.thread is not threading.current_thread()
        assert policy.thread.name.startswith("policy")
        answered(policy, runner)
        # It took two steps; before that was known, it was told that three would be executed: the third is the old chunk's, too.
        assert [float(runner.act(see(step))[0]) for step in (5, 6)] == [5, 303]
        assert list(runner.delays) == [2] and policy.asked[1][1]["inference_delay"] == 3
        for step in (7, 8):  # asked at 6
            runner.act(see(step))
        answered(policy, runner)
        assert float(runner.act(see(9))[0]) == 603
        assert policy.asked[2][1]["inference_delay"] == 2 and list(runner.delays) == [2, 3]
        assert policy.asked[2][1]["previous_chunk"][:, 0].tolist() == [303, 304, 305, 306, 307]
        assert runner.stalls == 0
        policy.permits.release()


def test_a_chunk_that_comes_too_late_is_waited_for():
    policy = Held(horizon=4)
    with PolicyRunner(policy, ChunkRule(execute=2)) as runner:
        runner.reset()
        for step in range(4):
            runner.act(see(step))
        timer = threading.Timer(0.05, policy.permits.release)
        timer.start()
        assert float(runner.act(see(4))[0]) == 202  # of the chunk of step 2
        assert runner.stalls == 1
        timer.join()
        policy.permits.release()


class Failing(Numbered):
    def infer(self, observation, **options):
        if observation["step"] == 3:
            raise ConnectionError("the server has gone")
        return super().infer(observation, **options)


@pytest.mark.parametrize("in_background", [True, False])
def test_errors_reach_the_control_loop(in_background):
    policy = Failing()
    with PolicyRunner(policy, ChunkRule(execute=3, inference_delay=0), in_background=in_background) as runner:
        runner.reset()
        assert [float(runner.act(see(step))[0]) for step in range(3)] == [0, 1, 2]
        with pytest.raises(ConnectionError, match="the server has gone"):
            runner.act(see(3))
        assert float(runner.act(see(4))[0]) == 400  # asked again
    late = PolicyRunner(policy, ChunkRule(execute=3, inference_delay=2), in_background=True)
    late.reset()
    assert [float(late.act(see(step))[0]) for step in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ConnectionError):
        late.act(see(5))
    late.close()


def test_closing():
    runner = PolicyRunner(Numbered())
    runner.reset()
    runner.act(see(0))
    thread = next(thread for thread in threading.enumerate() if thread.name.startswith("policy"))
    runner.close()
    runner.close()
    assert not thread.is_alive()
    for call in (lambda: runner.act(see(1)), runner.reset):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_a_reset_waits_for_the_chunk_that_is_computed():
    policy = Held()
    with PolicyRunner(policy, ChunkRule(execute=2)) as runner:
        runner.reset(seed=1)
        for step in range(3):
            runner.act(see(step))
        assert policy.began.acquire(timeout=30) and policy.began.acquire(timeout=30)
        timer = threading.Timer(0.05, policy.permits.release)
        timer.start()
        runner.reset(seed=2)
        assert steps_of(policy) == [0, 2] and policy.seeds == [1, 2]
        timer.join()
        policy.permits.release()
        assert float(runner.act(see(7))[0]) == 700


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros(3), r"shape \(3,\); the arm takes \(H, 2\)"),
        (np.zeros((3, 1)), r"shape \(3, 1\); the arm takes \(H, 2\)"),
        (np.zeros((0, 2)), r"shape \(0, 2\)"),
        (np.full((3, 2), np.inf), "NaN or infinite"),
    ],
)
def test_chunks_are_checked(chunk, message):
    policy = Numbered()
    policy.infer = lambda observation: chunk
    runner = PolicyRunner(policy, in_background=False, action_dim=2, robot="the arm")
    runner.reset()
    with pytest.raises(ValueError, match=message):
        runner.act(see(0))


@pytest.mark.parametrize("framework", ["qwen_gr00t", "qwen_oft"])
def test_real_policies(framework):
    policy = tiny_policies.build(framework)
    assert policy.supports_real_time_chunking == (framework == "qwen_gr00t")
    rule = ChunkRule("real_time_chunking", execute=1, inference_delay=1)

    def episode(in_background):
        with PolicyRunner(policy, rule, in_background=in_background) as runner:
            runner.reset(seed=5)
            return np.stack([runner.act(tiny_policies.observation()) for _ in range(4)])

    actions = episode(in_background=False)
    assert actions.shape == (4, tiny_policies.ACTION_DIM) and actions.dtype == np.float32
    np.testing.assert_array_equal(episode(in_background=True), actions)
    plain = PolicyRunner(policy, ChunkRule(execute=1, inference_delay=1), in_background=False)
    plain.reset(seed=5)
    alike = [np.array_equal(plain.act(tiny_policies.observation()), action) for action in actions]
    # The first two actions are the first chunk's; the guided chunks are others than those without guidance.
    assert alike[:2] == [True, True] and all(alike) == (framework == "qwen_oft")
    assert len(list(itertools.takewhile(bool, alike))) == (4 if framework == "qwen_oft" else 2)
