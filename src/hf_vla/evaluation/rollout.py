"""Closed-loop evaluation: a policy gets an observation, its action chunk is executed by a chunk rule, it gets the next one.

* `stream_episode`: one episode, step by step.
* `run_episode`: one episode.
* `run_episodes`: many episodes, in several processes that each load the policies themselves.
* `evaluate`: one policy on one environment over several seeds.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hf_vla.evaluation.captions import captioned
from hf_vla.evaluation.environments import Environment
from hf_vla.evaluation.policy_inputs import inputs_for
from hf_vla.evaluation.results import as_json, differences
from hf_vla.inference.chunk_rules import ChunkRule
from hf_vla.inference.policy_runner import PolicyRunner
from hf_vla.utils.processes import exit_with_parent, one_thread_per_process
from hf_vla.utils.progress import progress_bar

__all__ = [
    "Episode",
    "EpisodeResult",
    "RolloutPolicy",
    "RolloutStep",
    "evaluate",
    "policy_identity",
    "run_episode",
    "run_episodes",
    "stream_episode",
]

logger = logging.getLogger(__name__)

# A server that dies at the same observation again and again is not to be waited for forever.
_MOST_REPEATS = 20
_SECONDS_BETWEEN_TRIES = 1.0
_BLIND_GRAY = (128, 128, 128)
_VIDEO_SIZE = 256
# At a control rate of 80 Hz, every second step is more than enough for the eye.
_VIDEO_STRIDE = 2


class RolloutPolicy(Protocol):
    """The interface of a policy in a rollout; `hf_vla.inference.policy.Policy` implements it.

    If it has an `input_contract`, an `InputContract`, it is given the cameras and the state that this names.
    """

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; with a `seed`, the policy's sampling is reproducible."""

    def infer(self, observation: dict[str, Any]) -> np.ndarray:
        """Return an action chunk, (H, D) in robot units, for `{"image": [PIL.Image], "lang": str, "state": (1, S)}`.

        If the policy has a true `supports_real_time_chunking`, it also takes `previous_chunk` and `inference_delay`, as
        `Policy.infer` does.
        """


@dataclass(frozen=True)
class Episode:
    """One episode to run.

    Attributes:
        policy: key of the policy among those given to `run_episodes`.
        environment: key of the environment among those given to `run_episodes`.
        seed: places the objects and seeds the policy.
        blind: replace all images by a constant gray of the same size, as a control of how much is solved without seeing.
        wrong_instruction: give the policy the instruction of another task, as a control of how much is solved without
            the language: the environment's `other_instructions()` in turn by seed or, if it knows none, those of the
            other environments in the episode of this seed. Success stays that of the environment's own task.
        video: path of the mp4 to write, or None.
        recording: path of the file to write what the policy saw and did to, see `hf_vla.evaluation.recording`, or None.
    """

    policy: str
    environment: str
    seed: int
    blind: bool = False
    wrong_instruction: bool = False
    video: Path | None = None
    recording: Path | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """The outcome of an episode.

    Attributes:
        episode: the episode.
        success: whether the simulator's success flag was raised at any step.
        length: steps executed.
        score: the benchmark's own score, if it has one beside success.
        policy_identity: what identified the policy; see `policy_identity`.
    """

    episode: Episode
    success: bool
    length: int
    score: float | None = None
    policy_identity: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RolloutStep:
    """The start of an episode, or the result of one executed action.

    Attributes:
        number: steps executed so far, 0 at the start.
        action: float32 (D,) in robot units, as executed, clipped to the environment's limits; None at the start.
        success: whether the success flag was raised at any step so far.
        done: whether this was the episode's last step.
        score: `info["score"]` of the simulator, if there is one.
        new_chunk: whether the action is the first in which the newest chunk has a part.
    """

    number: int
    action: np.ndarray | None
    success: bool
    done: bool
    score: float | None = None
    new_chunk: bool = False


def stream_episode(
    policy: RolloutPolicy,
    environment: Environment,
    seed: int,
    *,
    execute_steps: int | None = None,
    chunk_rule: ChunkRule | None = None,
    blind: bool = False,
    instruction: str | None = None,
    stop_on_success: bool = True,
) -> Iterator[RolloutStep]:
    """Run one episode in closed loop, yielding at its start and after every step; see `run_episode` for the arguments.

    Between steps the caller may call `environment.render()`, or stop iterating; the caller closes the environment.
    """
    runner = PolicyRunner(
        policy,
        _one_rule(execute_steps, chunk_rule),
        in_background=False,  # an artificial delay, so that results do not depend on the machine
        action_dim=len(environment.action_low),
        robot=environment.name,
    )
    runner.reset(seed)
    given = inputs_for(policy, environment)
    observation: dict[str, Any] | None = environment.reset(seed)
    asked = environment.instruction
    succeeded, number, done = False, 0, False
    yield RolloutStep(number, None, succeeded, done)
    while not done:
        if environment.instruction != asked:  # a chunk is for one instruction
            runner.drop_chunks()
            asked = environment.instruction
        seen = None
        if runner.asks:
            seen = environment.observation() if observation is None else observation
            if blind:
                seen = {**seen, "image": [Image.new("RGB", image.size, _BLIND_GRAY) for image in seen["image"]]}
            if instruction is not None:
                seen = {**seen, "lang": instruction}
            seen = given(seen)
        action = np.clip(runner.act(seen), environment.action_low, environment.action_high)
        observation = None
        result = environment.step(action)
        number += 1
        succeeded |= result.success
        done = result.terminated or result.truncated or (result.success and stop_on_success)
        score = result.info.get("score") if result.info else None
        yield RolloutStep(number, action, succeeded, done, score, runner.new_chunk)


def run_episode(
    policy: RolloutPolicy,
    environment: Environment,
    seed: int,
    *,
    execute_steps: int | None = None,
    chunk_rule: ChunkRule | None = None,
    blind: bool = False,
    instruction: str | None = None,
    stop_on_success: bool = True,
    video: str | Path | None = None,
) -> tuple[bool, int]:
    """Run one episode in closed loop.

    Args:
        policy: reset with `seed`, then asked for one action chunk after another.
        environment: reset with `seed`.
        seed: places the objects and seeds the policy.
        execute_steps: actions executed per chunk before the policy is asked for the next one; None is 5, or the whole
            chunk if it is shorter. Actions are clipped to the environment's limits.
        chunk_rule: instead of `execute_steps`, any rule: ensembles, real-time chunking, an inference delay.
        blind: see `Episode`.
        instruction: what the policy is told instead of the environment's instruction.
        stop_on_success: end the episode at the first success instead of at the step limit.
        video: path of the mp4 to write, in real time: 256 x 256 pixels, and below them what `captioned` draws.

    Returns:
        Whether the success flag was raised at any step, and the number of steps executed.

    Raises:
        ValueError: the policy returns a chunk that is not finite, not (H, D), or too short for the rule; or it was trained on
            other inputs, see `inputs_for`; or both `execute_steps` and `chunk_rule` are given.
    """
    step = _last_step(
        policy,
        environment,
        seed,
        video,
        execute_steps=execute_steps,
        chunk_rule=chunk_rule,
        blind=blind,
        instruction=instruction,
        stop_on_success=stop_on_success,
    )
    return step.success, step.number


def _last_step(
    policy: RolloutPolicy,
    environment: Environment,
    seed: int,
    video: str | Path | None,
    recording: Path | None = None,
    instruction: str | None = None,
    **settings: Any,
) -> RolloutStep:
    """Run an episode, film it if `video` is a path, and record it if `recording` is one; see `run_episode`."""
    frames, recorded = [], None
    if recording is not None:
        from hf_vla.evaluation.recording import EpisodeFile  # needs pyarrow and PyAV

        recorded = EpisodeFile(environment)
    for step in stream_episode(policy, environment, seed, instruction=instruction, **settings):
        if recorded is not None:
            recorded.see(step.action, step.success)
        if video is not None and (step.number % _VIDEO_STRIDE == 0 or step.done):
            limits = environment.action_low, environment.action_high
            view = environment.render(_VIDEO_SIZE)
            asked = environment.instruction if instruction is None else instruction
            told = captioned(view, asked, step.number, step.action, *limits, step.success)
            frames.append(told)
    if video is not None:
        # PyAV is installed only with the extras for recording and evaluation.
        from hf_vla.data.video_writer import write_video

        write_video(video, frames, fps=max(1, environment.fps // _VIDEO_STRIDE))
    if recorded is not None:
        recorded.write(recording)
    return step


def run_episodes(
    episodes: Sequence[Episode],
    policies: Mapping[str, RolloutPolicy | Callable[[], RolloutPolicy]],
    environments: Mapping[str, Callable[[], Environment]],
    *,
    execute_steps: int | None = None,
    chunk_rule: ChunkRule | None = None,
    stop_on_success: bool = True,
    num_workers: int = 1,
    progress: bool = True,
    on_result: Callable[[EpisodeResult], None] | None = None,
    server_wait: float = 0,
    identities: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[EpisodeResult]:
    """Run many episodes; each worker makes every environment that it needs once, and a policy whenever it changes.

    Args:
        episodes: what to run, preferably sorted by policy; the results are in this order and do not depend on
            `num_workers`.
        policies: key → policy, or a function without arguments that makes it. With several workers it must be a
            function that can be pickled, such as `functools.partial(Policy.from_pretrained, path)`.
        environments: key → function without arguments that makes the environment; picklable on the same condition.
        execute_steps, chunk_rule, stop_on_success: see `run_episode`.
        num_workers: number of processes, each with one torch thread; with 1, the episodes run in this process.
        progress: whether to show a progress bar.
        on_result: called in this process with each result as it is there, in the order of finishing.
        server_wait: seconds to wait for the server of a policy that goes away (a ConnectionError or TimeoutError of a policy
            that a function makes). The function is called until the server is back, and the episode is repeated.
        identities: key → what the policy must be identified by, as `policy_identity` returns it; checked before the first
            episode and whenever a policy is made again.

    Raises:
        ValueError: an episode names a policy or environment that is not given, a number is out of range, or a policy is
            another than it was.
        ConnectionError, TimeoutError: a policy's server went away and is not back in time.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; give a whole number from 1")
    for episode in episodes:
        if episode.policy not in policies or episode.environment not in environments:
            raise ValueError(
                f"{episode} names a policy or environment that is not given; "
                f"policies: {sorted(policies)}, environments: {sorted(environments)}"
            )
    rule = _one_rule(execute_steps, chunk_rule)
    worker = _Worker(policies, environments, rule, stop_on_success, server_wait, dict(identities or {}))
    results: list[EpisodeResult | None] = [None] * len(episodes)
    if num_workers > 1:
        numbered = _in_processes(worker, episodes, min(num_workers, len(episodes)))
    else:
        numbered = ((index, worker.run(episode)) for index, episode in enumerate(episodes))
    solved = 0
    with progress_bar(total=len(episodes), unit="episode", disable=not progress) as bar:
        try:
            for index, result in numbered:
                results[index] = result
                solved += result.success
                if on_result is not None:
                    on_result(result)
                bar.set_postfix_str(f"{result.episode.environment}, {solved} solved", refresh=False)
                bar.update()
        finally:
            worker.close()
    return results


def evaluate(
    policy: RolloutPolicy | Callable[[], RolloutPolicy],
    environment: Callable[[], Environment],
    seeds: Iterable[int],
    *,
    execute_steps: int | None = None,
    chunk_rule: ChunkRule | None = None,
    blind: bool = False,
    stop_on_success: bool = True,
    num_workers: int = 1,
    num_videos: int = 0,
    video_folder: str | Path | None = None,
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run one policy on one environment, one episode per seed; see `run_episodes` for the arguments.

    The first `num_videos` episodes are written to `video_folder` as `seed-N.mp4`.

    Example:
        >>> environment = functools.partial(make_environment, "metaworld", "drawer-open")
        >>> results = evaluate(policy, environment, seeds=range(10_000, 10_020))
        >>> sum(result.success for result in results)
        20
    """
    if num_videos and video_folder is None:
        raise ValueError(f"num_videos is {num_videos} but no video_folder is given")
    episodes = [
        Episode(
            "policy",
            "environment",
            seed,
            blind,
            video=Path(video_folder) / f"seed-{seed}.mp4" if i < num_videos else None,
        )
        for i, seed in enumerate(seeds)
    ]
    return run_episodes(
        episodes,
        {"policy": policy},
        {"environment": environment},
        execute_steps=execute_steps,
        chunk_rule=chunk_rule,
        stop_on_success=stop_on_success,
        num_workers=num_workers,
        progress=progress,
    )


def _one_rule(execute_steps: int | None, chunk_rule: ChunkRule | None) -> ChunkRule:
    if chunk_rule is None:
        return ChunkRule(execute=execute_steps)
    if execute_steps is not None:
        raise ValueError(f"execute_steps is {execute_steps} and chunk_rule {chunk_rule}; give one of them")
    return chunk_rule


def policy_identity(policy: RolloutPolicy) -> dict[str, Any]:
    """Return what tells a policy from others, as JSON: its fingerprint, else what its server says of it, else its class."""
    told = getattr(policy, "metadata", None)
    served = isinstance(told, Mapping)
    fingerprint = told.get("fingerprint") if served else getattr(policy, "fingerprint", None)
    if fingerprint is None:
        return as_json(told) if served else {"class": type(policy).__qualname__}
    key = getattr(policy, "unnorm_key", None) or (told.get("default_unnorm_key") if served else None)
    return {"fingerprint": fingerprint, "unnorm_key": key}


class _Worker:
    """Makes policies and environments when an episode first needs them; keeps all environments and the last policy."""

    def __init__(self, policies, environments, chunk_rule, stop_on_success, server_wait, identities):
        self._policies, self._environments = policies, environments
        self._chunk_rule, self._stop_on_success = chunk_rule, stop_on_success
        self._server_wait, self._identities = server_wait, identities
        self._made: dict[str, Environment] = {}
        self._instructions: dict[tuple[str, int], str] = {}
        self._last_policy: tuple[str, RolloutPolicy] | None = None

    def run(self, episode: Episode) -> EpisodeResult:
        environment = self._environment(episode.environment)
        policy = self._policy(episode.policy)
        instruction = self._wrong_instruction(episode) if episode.wrong_instruction else None
        for repeat in range(_MOST_REPEATS + 1):
            try:
                last = _last_step(
                    policy,
                    environment,
                    episode.seed,
                    episode.video,
                    episode.recording,
                    chunk_rule=self._chunk_rule,
                    blind=episode.blind,
                    instruction=instruction,
                    stop_on_success=self._stop_on_success,
                )
                # A client may have found its server again by itself.
                identity = self._checked(episode.policy, policy)
                return EpisodeResult(episode, last.success, last.number, last.score, identity)
            except (ConnectionError, TimeoutError) as error:
                if (
                    repeat == _MOST_REPEATS
                    or self._server_wait <= 0
                    or not _is_factory(self._policies[episode.policy])
                ):
                    raise
                policy = self._found_again(episode.policy, error)
                logger.warning("the policy server is back; seed %d is run again from its start", episode.seed)

    def _found_again(self, key: str, error: Exception) -> RolloutPolicy:
        """Make the policy again, as soon as its server is back."""
        logger.warning("%s; waiting for it for up to %g s", error, self._server_wait)
        _, lost = self._last_policy
        self._last_policy = None
        if hasattr(lost, "close"):
            lost.close()
        deadline = time.monotonic() + self._server_wait
        while True:
            try:
                return self._policy(key)
            except (ConnectionError, TimeoutError) as failed:
                if time.monotonic() >= deadline:
                    raise ConnectionError(f"{failed}; waited for {self._server_wait:g} s") from failed
                time.sleep(_SECONDS_BETWEEN_TRIES)

    def close(self) -> None:
        for environment in self._made.values():
            environment.close()
        self._made = {}
        self._last_policy = None

    def _policy(self, key: str) -> RolloutPolicy:
        given = self._policies[key]
        if not _is_factory(given):
            self._checked(key, given)
            return given
        if self._last_policy is None or self._last_policy[0] != key:
            # The old policy is released before the new one is loaded: a single large one can fill a GPU.
            self._last_policy = None
            policy = given()
            self._checked(key, policy)
            self._last_policy = (key, policy)
        return self._last_policy[1]

    def _checked(self, key: str, policy: RolloutPolicy) -> dict[str, Any]:
        """Return what identifies the policy.

        Raises:
            ValueError: it is another one than before.
        """
        now = policy_identity(policy)
        before = self._identities.setdefault(key, now)
        if before != now:
            raise ValueError(
                f"the policy is another one than in the part of the evaluation that is finished: {differences(before, now)}; "
                "evaluate the same policy to continue, or choose another output"
            )
        return now

    def _wrong_instruction(self, episode: Episode) -> str:
        environment = self._environment(episode.environment)
        environment.reset(episode.seed)  # which decides what is asked for, in some simulators
        others = environment.other_instructions()
        if not others:
            own = environment.instruction
            tasks = dict.fromkeys(
                self._instruction(key, episode.seed) for key in self._environments if key != episode.environment
            )
            others = [instruction for instruction in tasks if instruction != own]
        if not others:
            raise ValueError(
                f"there is no wrong instruction for {episode.environment}: its scene has no other task that is known, and no other "
                "environment is given; give several tasks"
            )
        return others[episode.seed % len(others)]

    def _instruction(self, key: str, seed: int) -> str:
        """Return what an environment asks for in the episode of a seed, or in the one that this counts up to."""
        if (key, seed) not in self._instructions:
            environment = self._environment(key)
            environment.reset(seed if environment.num_episodes is None else seed % environment.num_episodes)
            self._instructions[key, seed] = environment.instruction
        return self._instructions[key, seed]

    def _environment(self, key: str) -> Environment:
        if key not in self._made:
            self._made[key] = self._environments[key]()
        return self._made[key]


def _is_factory(given: RolloutPolicy | Callable[[], RolloutPolicy]) -> bool:
    return isinstance(given, type) or not hasattr(given, "infer")


_worker: _Worker | None = None


def _start_process(worker: _Worker) -> None:
    global _worker
    # Several processes with several threads each would compete for the cores.
    with contextlib.suppress(ModuleNotFoundError):  # hf-vla-client has no torch
        import torch

        torch.set_num_threads(1)
    _worker = worker
    # If the main process is killed, its workers would wait for episodes forever, each with a copy of the policy.
    exit_with_parent()


def _run_in_process(episode: Episode) -> EpisodeResult:
    return _worker.run(episode)


def _in_processes(
    worker: _Worker, episodes: Sequence[Episode], num_workers: int
) -> Iterator[tuple[int, EpisodeResult]]:
    one_thread_per_process()
    # A forked process inherits OpenGL, CUDA and thread pools in an unusable state.
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(worker,)
    )
    try:
        futures = {pool.submit(_run_in_process, episode): index for index, episode in enumerate(episodes)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
