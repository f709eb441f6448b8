"""`PolicyRunner`: one action per control step from a policy's chunks, in a simulator or on a robot.

It needs only NumPy, and Python 3.8: simulators with an environment of their own use it too.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..utils.once import warn_once
from .chunk_rules import ChunkRule, adaptive_mean, temporal_mean

logger = logging.getLogger(__name__)

# Real-time chunking counts on the largest of this many delays (Black et al. 2025, Algorithm 1).
_RECENT = 10


class PolicyRunner:
    """Turns a policy's action chunks into one action per control step, by a [`ChunkRule`].

    On a robot, the policy runs in a thread while the robot moves: the control loop calls `act` once per control step. In a
    simulator (`in_background=False`) the policy runs in the caller; a chunk that is to arrive d steps later is held back until then,
    so that a delay's effect does not depend on how fast the machine is.

    With a given delay d (`rule.inference_delay`), a chunk that is asked for at step t is executed from step t + d on: if it is not
    there, `act` waits, if it is there earlier, it is not used earlier. The actions are then those of a simulator with this delay.
    Without a given delay, a chunk is executed as soon as it is there, and `act` waits only if the chunks before it have no action
    left, which is counted in `stalls`. Real-time chunking then expects the largest of the last ten delays, and before any was
    measured, as many steps as lie between two requests.

    Args:
        policy: has `reset(seed=…)` and `infer(observation)`, such as [`Policy`] or `PolicyClient`. One that also has
            `supports_real_time_chunking` is given `previous_chunk` and `inference_delay` in the mode `real_time_chunking`.
        rule: default: `ChunkRule()`, five actions of each chunk.
        in_background: run the policy in a thread.
        action_dim: size of an action, to be checked.
        robot: who takes the actions, for messages.

    Attributes:
        stalls: how often `act` had to wait because there was no action left, in this episode.
        delays: the last delays in control steps, on a robot.
        new_chunk: whether the last `act` was the first that used its newest chunk.

    ```python
    >>> with PolicyRunner(policy, ChunkRule("real_time_chunking", execute=8)) as runner:  # doctest: +SKIP
    ...     runner.reset()
    ...     while running():
    ...         robot.send(runner.act(robot.observe()))
    ...         rate.sleep()
    ```
    """

    def __init__(
        self,
        policy: Any,
        rule: ChunkRule | None = None,
        *,
        in_background: bool = True,
        action_dim: int | None = None,
        robot: str = "the robot",
    ):
        self.policy, self.rule = policy, ChunkRule() if rule is None else rule
        self._action_dim, self._robot = action_dim, robot
        self._delay = self.rule.inference_delay
        if self._delay is None and not in_background:
            self._delay = 0
        self._guided = self.rule.mode == "real_time_chunking" and _can_continue(policy)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy") if in_background else None
        self._pending: Future | None = None
        self._closed = False
        self.delays: deque[int] = deque(maxlen=_RECENT)
        self._start()

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; a chunk that is still being computed is waited for, and dropped."""
        self._check_open()
        self._wait()
        self.policy.reset(seed=seed)
        self._start()

    def drop_chunks(self) -> None:
        """Forget all predictions, for example because what is to be done has changed; the next `act` asks the policy."""
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step of its first action, chunk), oldest first
        self._pending, self._asked, self._instruction = None, None, None

    @property
    def asks(self) -> bool:
        """Whether the next `act` asks the policy. If not, it takes None, which spares a simulator an observation."""
        return (self._pending is None or self._has_arrived()) and self._is_due()

    def act(self, observation: Mapping[str, Any] | None) -> np.ndarray:
        """Return the action of this control step, float32 (D,) in robot units.

        Args:
            observation: what `policy.infer` takes. Another instruction ("lang") than before drops the chunks that there are. None
                is possible if the policy will not be asked (`asks`).

        Raises:
            ValueError: the policy returns a chunk that is not finite, not (H, D), or too short for the rule.
            Exception: whatever the policy raised for the observation of this or an earlier step. The next `act` asks it again.
            RuntimeError: the runner is closed.
        """
        self._check_open()
        if observation is not None and observation["lang"] != self._instruction:
            self.drop_chunks()
            self._instruction = observation["lang"]
        if self._pending is not None and self._has_arrived():
            self._receive()
        if self._pending is None and self._is_due():
            if observation is None:
                raise ValueError("the policy is to be asked at this step; give the observation")
            self._ask(observation)
            if self._delay == 0:
                self._receive()
        action = self._action()
        if action is None:
            self.stalls += bool(self._chunks)
            self._receive()
            action = self._action()
        newest = self._chunks[-1][0]
        self.new_chunk, self._last_used = newest != self._last_used, newest
        self._now += 1
        return action

    def close(self) -> None:
        """Stop the thread, after the chunk that it computes; calling again does nothing."""
        if not self._closed:
            self._closed = True
            self._wait()
            if self._pool is not None:
                self._pool.shutdown()

    def __enter__(self) -> PolicyRunner:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _start(self) -> None:
        self.drop_chunks()
        self._now, self._last_used = 0, -1
        self.stalls, self.new_chunk = 0, False

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this PolicyRunner is closed; make another one")

    def _has_arrived(self) -> bool:
        if self._delay is None:
            return self._pending.done()
        return self._now >= self._asked + self._delay

    def _is_due(self) -> bool:
        if self._asked is None or not self._chunks:
            return self._pending is None
        return self._now >= self._asked + self._period

    def _ask(self, observation: Mapping[str, Any]) -> None:
        options = self._previous() if self._guided and self._chunks else {}
        self._asked = None  # if it fails, it is asked again
        if self._pool is None:
            pending: Future = Future()
            pending.set_result(self.policy.infer(observation, **options))
        else:
            pending = self._pool.submit(self.policy.infer, observation, **options)
        self._pending, self._asked = pending, self._now

    def _previous(self) -> dict[str, Any]:
        """What real-time chunking is told: the actions of the newest chunk from now on, and how many of them will be executed."""
        start, chunk = self._chunks[-1]
        rest = chunk[self._now - start :]
        if not len(rest):
            return {}
        expected = self._delay
        if expected is None:
            expected = max(self.delays) if self.delays else self._period
        return {"previous_chunk": rest, "inference_delay": min(expected, len(rest))}

    def _receive(self) -> None:
        pending, asked = self._pending, self._asked
        self._pending, self._asked = None, None
        chunk = self._checked(pending.result())
        self._asked = asked
        self._period = self.rule.period(len(chunk), self._delay or 0)
        if self._chunks and self._delay is None:
            self.delays.append(self._now - asked)
        self._chunks.append((asked, chunk))

    def _checked(self, chunk: Any) -> np.ndarray:
        chunk = np.asarray(chunk, dtype=np.float32)
        if chunk.ndim != 2 or not len(chunk) or self._action_dim not in (None, chunk.shape[1]):
            raise ValueError(
                f"the policy returned an action chunk of shape {chunk.shape}; {self._robot} takes "
                f"(H, {'D' if self._action_dim is None else self._action_dim})"
            )
        if not np.isfinite(chunk).all():
            raise ValueError("the policy returned NaN or infinite actions")
        return chunk

    def _action(self) -> np.ndarray | None:
        """Return what the chunks say for now, or None if they say nothing."""
        reaching = [(start, chunk) for start, chunk in self._chunks if self._now - start < len(chunk)]
        if not reaching:
            return None
        ensemble = self.rule.mode in ("temporal_ensemble", "adaptive_ensemble")
        most = (self.rule.length or len(reaching)) if ensemble else 1
        self._chunks = reaching[-most:]
        predictions = [chunk[self._now - start] for start, chunk in self._chunks]
        if self.rule.mode == "temporal_ensemble":
            return temporal_mean(predictions, self.rule.decay).astype(np.float32)
        if self.rule.mode == "adaptive_ensemble":
            return adaptive_mean(predictions, self.rule.alpha).astype(np.float32)
        return predictions[0].copy()

    def _wait(self) -> None:
        """Wait until the thread is idle; what becomes of its chunk does not matter any more."""
        if self._pool is not None:
            self._pool.submit(lambda: None).result()


def _can_continue(policy: Any) -> bool:
    """Return whether a policy can do real-time chunking; if not, say what happens instead."""
    if getattr(policy, "supports_real_time_chunking", False):
        return True
    warn_once(
        logger,
        f"{type(policy).__name__} has no real-time chunking, which takes a flow-matching or discrete-diffusion policy: new chunks replace "
        "old ones without continuing them, as in the mode open_loop",
    )
    return False


__all__ = ["PolicyRunner"]
