"""Collect episodes for reinforcement learning: simulators in processes of their own, the policy in this one, in batches.

* `Context`: what an episode starts from; `CollectedEpisode`: what became of it.
* `Collector`: simulators that stay alive, and `collect(contexts, policy) → episodes`.
* `run_simulators`: what such a process runs, here or (`hf_vla.evaluation.remote_simulators`) on another machine.

Processes with simulators need neither the policy nor torch: they are sent actions and return what follows. All simulators that
wait for actions get them from one batch.
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from hf_vla.evaluation.environments import Environment
from hf_vla.evaluation.policy_inputs import inputs_for
from hf_vla.utils.episode_seeds import draw_seed
from hf_vla.utils.processes import exit_with_parent, one_thread_per_process
from hf_vla.utils.progress import progress_bar

__all__ = [
    "ChunkSampler",
    "CollectedChunk",
    "CollectedEpisode",
    "Collector",
    "Context",
    "run_simulators",
]

logger = logging.getLogger(__name__)

# A simulator that dies again and again is not to be waited for forever.
_MOST_DEATHS = 3


@dataclass(frozen=True)
class Context:
    """What an episode starts from.

    Attributes:
        task: key of the environment among those given to the collector.
        seed: places the objects.
        policy_seed: seeds the policy's draws. Episodes of one group have the same task and seed, and differ in this.
    """

    task: str
    seed: int
    policy_seed: int = 0


class CollectedChunk(NamedTuple):
    """One action chunk of an episode.

    Attributes:
        sample: what the policy's `sample` returned beside the actions.
        rewards: the simulator's reward of each executed step.
        success: whether the success flag was raised in one of them.
    """

    sample: Any
    rewards: tuple[float, ...]
    success: bool


@dataclass
class CollectedEpisode:
    """An episode from its start to its end.

    Attributes:
        context: what it started from.
        chunks: in their order.
        success: whether the success flag was raised at any step.
    """

    context: Context
    chunks: list[CollectedChunk] = field(default_factory=list)

    @property
    def success(self) -> bool:
        return any(chunk.success for chunk in self.chunks)

    @property
    def length(self) -> int:
        """Steps executed."""
        return sum(len(chunk.rewards) for chunk in self.chunks)


class ChunkSampler(Protocol):
    """A policy as `collect` needs it."""

    def sample(self, observations: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[tuple[np.ndarray, Any]]:
        """Return for each observation a chunk (H, D) in robot units and what else is to be kept of it.

        Args:
            observations: as `Policy.infer` takes them.
            seeds: of each draw. The same observation and seed give the same chunk, whatever else is in the batch.
        """


# ------------------------------------------------------------------------------------------------- in the simulators' process


@dataclass(frozen=True)
class EnvironmentFacts:
    """What `inputs_for` and the collector need to know of an environment that is in another process."""

    name: str
    task: str
    instruction: str
    action_low: np.ndarray
    action_high: np.ndarray
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    camera_names: tuple[str, ...]
    fps: float
    robot_types: tuple[str, ...]
    num_episodes: int | None

    @classmethod
    def of(cls, environment: Environment) -> EnvironmentFacts:
        lists = {
            n: tuple(getattr(environment, n)) for n in ("action_names", "state_names", "camera_names", "robot_types")
        }
        plain = {n: getattr(environment, n) for n in ("name", "task", "instruction", "fps", "num_episodes")}
        limits = {n: np.asarray(getattr(environment, n), np.float32) for n in ("action_low", "action_high")}
        return cls(**plain, **lists, **limits)


class Simulators:
    """The environments of one process, each in a slot of its own, and the requests that they answer.

    Args:
        make: task → environment.
    """

    def __init__(self, make: Callable[[str], Environment]):
        self._make = make
        self._made: dict[tuple[int, str], Environment] = {}
        self._running: dict[int, Environment] = {}

    def answer(self, request: tuple) -> Any:
        kind, *arguments = request
        return {"facts": self.facts, "start": self.start, "act": self.act}[kind](*arguments)

    def facts(self, task: str, seed: int) -> EnvironmentFacts:
        """Return what is to be known of a task's environment, after a step of it.

        Raises:
            ValueError: it does not tell rewards or success.
        """
        environment = self._environment(0, task)
        environment.reset(seed)
        low, high = environment.action_low, environment.action_high
        result = environment.step(np.clip(np.zeros_like(low), low, high))
        for name, kinds in (("reward", (int, float, np.number)), ("success", (bool, np.bool_))):
            value = getattr(result, name, None)
            if not isinstance(value, kinds):
                raise ValueError(
                    f"{environment.name} tells no {name} of a step: step() returned {name} {value!r}; reinforcement learning "
                    "needs both. Return a hf_vla.evaluation.StepResult(reward, terminated, truncated, success, info)"
                )
        return EnvironmentFacts.of(environment)

    def start(self, slot: int, task: str, seed: int) -> Mapping[str, Any]:
        """Start an episode and return its first observation."""
        environment = self._running[slot] = self._environment(slot, task)
        return environment.reset(seed)

    def act(self, slot: int, actions: np.ndarray) -> tuple[tuple[float, ...], bool, Mapping[str, Any] | None]:
        """Execute a chunk up to its end, or the episode's; return rewards, success and the next observation, None at the end."""
        environment, rewards, success = self._running[slot], [], False
        instruction = environment.instruction
        for action in actions:
            result = environment.step(action)
            rewards.append(float(result.reward))
            success |= bool(result.success)
            if result.terminated or result.truncated or success:
                return tuple(rewards), success, None
            if environment.instruction != instruction:  # a chunk is for one instruction
                break
        return tuple(rewards), success, environment.observation()

    def close(self) -> None:
        for environment in self._made.values():
            environment.close()
        self._made.clear()

    def _environment(self, slot: int, task: str) -> Environment:
        if (slot, task) not in self._made:
            self._made[slot, task] = self._make(task)
        return self._made[slot, task]


def run_simulators(simulators: Simulators, receive: Callable[[], tuple], send: Callable[[tuple], None]) -> None:
    """Answer requests until there are no more (EOFError, or None): ("answer", value), or ("error", type, text)."""
    try:
        while (request := receive()) is not None:
            try:
                reply = ("answer", simulators.answer(request))
            except Exception as error:  # of any simulator: the caller raises it
                reply = ("error", type(error).__name__, str(error))
            send(reply)
    except (EOFError, ConnectionError):
        pass
    finally:
        simulators.close()


def _process(connection, environments: Mapping[str, Callable[[], Environment]]) -> None:
    exit_with_parent()
    run_simulators(Simulators(functools.partial(_call, environments)), connection.recv, connection.send)


def _call(environments: Mapping[str, Callable[[], Environment]], task: str) -> Environment:
    return environments[task]()


# ---------------------------------------------------------------------------------------------------------- in this process


class Worker(Protocol):
    """A process with simulators, as the collector sees it. What fails because the process is gone is a ConnectionError."""

    name: str

    def send(self, request: tuple) -> None: ...

    def receive(self) -> tuple: ...

    def restart(self, patient: bool = True) -> None:
        """Start it again; `patient`: wait for it, if it is on a machine that is away."""

    def close(self) -> None: ...


class LocalWorker:
    """A process on this machine.

    Args:
        environments: task → function that makes its environment; picklable.
        timeout: seconds after which a process that does not answer is given up.
    """

    def __init__(self, name: str, environments: Mapping[str, Callable[[], Environment]], timeout: float):
        self.name, self._environments, self._timeout = name, dict(environments), timeout
        self.process = None
        self.restart()

    def restart(self, patient: bool = True) -> None:
        self.close()
        # A forked process inherits OpenGL, CUDA and thread pools in an unusable state.
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_process, args=(theirs, self._environments), daemon=True)
        one_thread_per_process()
        self.process.start()
        theirs.close()

    def send(self, request: tuple) -> None:
        try:
            self._connection.send(request)
        except OSError:
            raise self._ended() from None

    def receive(self) -> tuple:
        if not self._connection.poll(self._timeout):
            raise ConnectionError(f"it has not answered for {self._timeout:g} s")
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> ConnectionError:
        self.process.join(timeout=5)
        return ConnectionError(f"it ended with exit code {self.process.exitcode}")

    def close(self) -> None:
        if self.process is None:
            return
        self._connection.close()
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = None


class _Running:
    """An episode that is under way."""

    def __init__(self, index: int, context: Context):
        self.index, self.episode = index, CollectedEpisode(context)
        self.observation: Mapping[str, Any] | None = None
        self.actions: np.ndarray | None = None  # to execute next
        self.sample: Any = None  # what the policy keeps of them


class Collector:
    """Simulators that stay alive over many calls of `collect`.

    Args:
        environments: task → function without arguments that makes its environment; picklable, such as
            `functools.partial(make_environment, "metaworld", "drawer-open")`.
        num_workers: processes with simulators on this machine.
        environments_per_worker: environments under way in each process; each keeps one simulator per task that it has run. The
            more there are, the larger the policy's batches.
        workers: further processes, such as `RemoteWorker`s; with these, `num_workers` may be 0.
        execute_steps: actions of a chunk that are executed before the policy is asked for the next one. They are clipped to
            the environment's limits.
        timeout: seconds after which a process that does not answer is given up.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> environments = {"drawer-open": functools.partial(make_environment, "metaworld", "drawer-open")}
        >>> with Collector(environments, num_workers=2) as collect:
        ...     episodes = collect([Context("drawer-open", seed) for seed in range(48)], policy)
    """

    def __init__(
        self,
        environments: Mapping[str, Callable[[], Environment]],
        *,
        num_workers: int = 1,
        environments_per_worker: int = 4,
        workers: Sequence[Worker] = (),
        execute_steps: int = 5,
        timeout: float = 600,
    ):
        if num_workers < 0 or num_workers + len(workers) < 1 or environments_per_worker < 1 or execute_steps < 1:
            raise ValueError(
                f"num_workers is {num_workers}, environments_per_worker {environments_per_worker}, execute_steps "
                f"{execute_steps}; all start at 1, num_workers at 0 if there are other workers"
            )
        self.tasks = tuple(environments)
        self.execute_steps = execute_steps
        #: How many episodes were begun again because their process ended.
        self.repeated = 0
        self._environments, self._timeout = dict(environments), timeout
        self._num_workers, self._per_worker = num_workers, environments_per_worker
        self._workers: list[Worker] | None = None
        self._others, self._closed = list(workers), False
        self._gone: set[int] = set()  # those that could not be started again
        self._facts: dict[str, EnvironmentFacts] = {}

    def __call__(self, contexts: Sequence[Context], policy: ChunkSampler, **options: Any) -> list[CollectedEpisode]:
        return self.collect(contexts, policy, **options)

    def collect(
        self,
        contexts: Sequence[Context],
        policy: ChunkSampler,
        *,
        progress: str | None = None,
    ) -> list[CollectedEpisode]:
        """Run one episode from each context, and return them in their order.

        An episode whose process ends is begun again from its start; what it had done before counts nowhere.

        Args:
            contexts: what to start from.
            policy: samples chunks. If it has an `input_contract`, it is given the cameras and the state that this names.
            progress: what a progress bar is called; by default there is none.

        Raises:
            ValueError: a task is not known, an environment tells no reward or success or a reward that is not a number, the
                policy's chunks don't fit it, or it raises an error.
            ConnectionError: processes end again and again.
        """
        if unknown := sorted({context.task for context in contexts} - set(self.tasks)):
            raise ValueError(f"there is no environment of {', '.join(unknown)}; there are {', '.join(self.tasks)}")
        workers = self._started()
        self._call_back()
        given = {}
        for context in contexts:
            if context.task not in given:
                given[context.task] = inputs_for(policy, self.facts(context.task, context.seed))
        waiting = deque(_Running(index, context) for index, context in enumerate(contexts))
        running: dict[tuple[int, int], _Running] = {}
        finished: list[CollectedEpisode | None] = [None] * len(contexts)
        deaths = [0] * len(workers)
        solved = 0
        with progress_bar(total=len(contexts), unit="episode", disable=progress is None) as bar:
            while waiting or running:
                asked: dict[tuple[int, int], tuple] = {}
                for place, one in running.items():
                    asked[place] = ("act", place[1], one.actions)
                for slot in range(self._per_worker):
                    for number in range(len(workers)):
                        if number not in self._gone and (number, slot) not in running and waiting:
                            one = running[number, slot] = waiting.popleft()
                            asked[number, slot] = ("start", slot, one.episode.context.task, one.episode.context.seed)
                answers, dead = self._exchange(asked)
                for number, reason in dead.items():
                    deaths[number] += 1
                    lost = [running.pop(place) for place in sorted(running) if place[0] == number]
                    waiting.extendleft(
                        _Running(one.index, one.episode.context) for one in sorted(lost, key=lambda one: -one.index)
                    )
                    self._revive(number, reason, [one.episode.context for one in lost], deaths[number])
                    self.repeated += len(lost)
                for place, answer in answers.items():
                    if place not in running:
                        continue
                    one = running[place]
                    if asked[place][0] == "start":
                        one.observation = answer
                        continue
                    rewards, success, one.observation = answer
                    self._check_rewards(rewards, one.episode.context)
                    one.episode.chunks.append(CollectedChunk(one.sample, tuple(rewards), success))
                    if one.observation is None:
                        deaths[place[0]] = 0
                        finished[one.index] = running.pop(place).episode
                        solved += success
                        bar.set_postfix_str(f"{solved} solved", refresh=False)
                        bar.update()
                self._sample(running, policy, given)
        return finished

    def facts(self, task: str, seed: int = 0) -> EnvironmentFacts:
        """Return what is to be known of a task's environment, which is made and tried for it.

        Raises:
            ValueError: it does not tell rewards or success, or can't be made.
            ConnectionError: a process ends again and again.
        """
        if task not in self._facts:
            workers = self._started()
            self._call_back()
            answers: dict[tuple[int, int], EnvironmentFacts] = {}
            deaths = [0] * len(workers)
            missing = set(range(len(workers))) - self._gone
            while missing:  # each process says whether it can make it
                answered, dead = self._exchange({(number, 0): ("facts", task, seed) for number in sorted(missing)})
                answers |= answered
                for number, reason in dead.items():
                    deaths[number] += 1
                    self._revive(number, reason, [Context(task, seed)], deaths[number])
                missing = dead.keys() - self._gone
            self._facts[task] = next(iter(answers.values()))
        return self._facts[task]

    def close(self) -> None:
        """End the processes; `collect` starts them anew."""
        for worker in self._others if self._workers is None else self._workers:
            worker.close()
        self._workers, self._gone, self._closed = None, set(), True

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _started(self) -> list[Worker]:
        if self._workers is None:
            local = [
                LocalWorker(f"process {number}", self._environments, self._timeout)
                for number in range(self._num_workers)
            ]
            self._workers = [*local, *self._others]
            if self._closed:  # and the others with it
                self._gone = set(range(len(local), len(self._workers)))
                self._call_back(patient=True)
        return self._workers

    def _exchange(
        self, asked: Mapping[tuple[int, int], tuple]
    ) -> tuple[dict[tuple[int, int], Any], dict[int, Exception]]:
        """Send all requests, then read all answers, so that the processes work side by side; also return who is gone, and why."""
        dead: dict[int, Exception] = {}
        for (number, _), request in asked.items():
            if number not in dead:
                try:
                    self._workers[number].send(request)
                except OSError as error:
                    dead[number] = error
        replies = {}
        for place in asked:
            number = place[0]
            if number not in dead:
                try:
                    replies[place] = self._workers[number].receive()
                except OSError as error:
                    dead[number] = error
        # Judged when all have been read: what is left in a pipe would be taken for the answer to the next request.
        answers = {
            place: _answer(reply, f"the simulator of {self._workers[place[0]].name}")
            for place, reply in replies.items()
            if place[0] not in dead
        }
        return answers, dead

    def _revive(self, number: int, reason: Exception, lost: Sequence[Context], deaths: int) -> None:
        worker = self._workers[number]
        started = ", ".join(f"{context.task} seed {context.seed}" for context in lost[:4])
        if deaths >= _MOST_DEATHS:
            raise ConnectionError(
                f"{worker.name} with simulators ended {deaths} times without finishing an episode ({reason}); it had begun "
                f"{started}. Run one of them by hf-vla eval to see why"
            )
        logger.warning(
            "%s with simulators is gone (%s); it is started again, and so are its episodes: %s",
            worker.name,
            reason,
            started,
        )
        try:
            worker.restart()
        except OSError as error:
            self._gone.add(number)
            if len(self._gone) == len(self._workers):
                raise ConnectionError(f"no process with simulators is left: {error}") from error
            logger.warning("%s stays away (%s); the others go on", worker.name, error)

    def _call_back(self, patient: bool = False) -> None:
        """Start again what had stayed away, if it is there now; `patient`: wait for it."""
        reason = None
        for number in sorted(self._gone):
            try:
                self._workers[number].restart(patient)
                self._gone.discard(number)
            except OSError as error:
                reason = error
        if len(self._gone) == len(self._workers):
            raise ConnectionError(f"no process with simulators is left: {reason}") from reason

    def _sample(self, running: Mapping[tuple[int, int], _Running], policy: ChunkSampler, given: Mapping) -> None:
        """Ask the policy for a chunk for every episode that is under way."""
        ready = [running[place] for place in sorted(running)]
        if not ready:
            return
        observations = [given[one.episode.context.task](one.observation) for one in ready]
        seeds = [draw_seed(one.episode.context.policy_seed, len(one.episode.chunks)) for one in ready]
        for one, (chunk, kept) in zip(ready, policy.sample(observations, seeds), strict=True):
            one.actions, one.sample = self._executed(chunk, self._facts[one.episode.context.task]), kept

    def _executed(self, chunk: np.ndarray, facts: EnvironmentFacts) -> np.ndarray:
        chunk = np.asarray(chunk, dtype=np.float32)
        if chunk.ndim != 2 or chunk.shape[1] != len(facts.action_low) or len(chunk) < self.execute_steps:
            raise ValueError(
                f"the policy returned a chunk of shape {chunk.shape}; {facts.name} takes (H, {len(facts.action_low)}) with H of at "
                f"least {self.execute_steps}, the steps to execute"
            )
        if not np.isfinite(chunk).all():
            raise ValueError("the policy returned NaN or infinite actions")
        return np.clip(chunk[: self.execute_steps], facts.action_low, facts.action_high)

    def _check_rewards(self, rewards: Sequence[float], context: Context) -> None:
        if not all(map(math.isfinite, rewards)):
            raise ValueError(
                f"the reward of {self._facts[context.task].name} is {[*rewards]} in an episode of {context.task}, seed "
                f"{context.seed}; it must be a finite number. Fix the simulator, or what computes its reward"
            )


def _answer(reply: tuple, who: str) -> Any:
    if reply[0] == "answer":
        return reply[1]
    _, kind, text = reply
    raise ValueError(f"{who} failed: {text}" if kind == "ValueError" else f"{who} failed: {kind}: {text}")
