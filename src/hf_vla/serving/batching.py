"""Requests of several robots, predicted together.

While the policy is busy, requests wait; what has gathered by then is the next batch. A lone robot thus never waits for others.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..inference import Policy


@dataclass(eq=False)
class _Job:
    observations: Sequence[Mapping]
    unnorm_key: str | None
    options: dict[str, Any]
    done: asyncio.Future = field(repr=False)

    def goes_with(self, other: "_Job") -> bool:
        """Whether one call of the policy can serve both."""
        if {"previous_chunk", "inference_delay"} & {*self.options, *other.options}:
            return False
        return (self.unnorm_key, self.options) == (other.unnorm_key, other.options)


class Batcher:
    """Calls a policy from one thread, with as many waiting observations at once as fit together.

    Args:
        policy: whose `infer` is called.
        max_batch_size: observations a call. One request with more is served all the same.
    """

    def __init__(self, policy: Policy, max_batch_size: int = 8) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size is {max_batch_size}; give 1 or more")
        self.max_batch_size = max_batch_size
        self._policies = {policy.unnorm_key: policy}
        self._policy = policy
        self.waiting: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._worker: asyncio.Task | None = None

    async def infer(
        self, observations: Sequence[Mapping], unnorm_key: str | None = None, **options: Any
    ) -> np.ndarray:
        """Actions (B, T, D) as of `Policy.infer`, whose options these are.

        Raises:
            ValueError: as there, of this request alone, whatever it was predicted with.
        """
        job = _Job(observations, unnorm_key, options, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve_waiting())
        return await job.done

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while jobs := self._next_batch():
            results = await loop.run_in_executor(self._thread, self._infer, jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.done.done():  # the robot has gone
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _next_batch(self) -> list[_Job]:
        """The longest waiting job, and those behind it that go with it, in order."""
        batch, left, size = [], deque(), 0
        for job in self.waiting:
            if job.done.done():
                continue
            number = len(job.observations)
            if not batch or (size + number <= self.max_batch_size and job.goes_with(batch[0])):
                batch.append(job)
                size += number
            else:
                left.append(job)
        self.waiting = left
        return batch

    def _infer(self, jobs: list[_Job]) -> list[np.ndarray | Exception]:
        first = jobs[0]
        try:
            policy = self._policy_for(first.unnorm_key)
            observations = [observation for job in jobs for observation in job.observations]
            actions = policy.infer(observations, **first.options)
        except Exception as error:
            # One bad observation must not spoil the others.
            return [error] if len(jobs) == 1 else [self._infer([job])[0] for job in jobs]
        return np.split(actions, np.cumsum([len(job.observations) for job in jobs])[:-1])

    def _policy_for(self, unnorm_key: str | None) -> Policy:
        if unnorm_key is None or not self._policy.processor.statistics:
            return self._policy
        if unnorm_key not in self._policies:
            self._policies[unnorm_key] = Policy(self._policy.model, self._policy.processor, unnorm_key)
        return self._policies[unnorm_key]


__all__ = ["Batcher"]
