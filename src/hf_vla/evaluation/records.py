"""One record per benchmark: its protocol as data, in `benchmarks/NAME.yaml`.

* `load_record(name, protocol)`: a record, checked; a wrong key or value is an error that names the file.
* `record_names()`: the benchmarks that there are.
* `BenchmarkRecord`: what a record says.

The package that simulators with an environment of their own install has the same records as JSON: it does without PyYAML.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_vla.evaluation.protocol_steps import ACTION_STEPS, IMAGE_STEPS, SuccessRule, named_step, nested_mean
from hf_vla.inference.chunk_rules import ChunkRule
from hf_vla.utils.suggestions import nearest_first

__all__ = ["PROTOCOLS", "BenchmarkRecord", "Suite", "Task", "View", "load_record", "record_names"]

#: What `--as` offers: as StarVLA's evaluation code does it now, and as it did for the published results.
PROTOCOLS = ("current", "published")
# What holds if no protocol is asked for, and what differs for the published results.
_VARIANTS = {None: "default", "current": None, "published": "published"}


@dataclass(frozen=True)
class View:
    """One image of an observation.

    Attributes:
        name: the camera's name in datasets and in the policy's contract.
        source: the simulator's name for it.
        size: (width, height) that the simulator renders, in pixels.
        steps: what is done to it, in this order; see `protocol_steps.IMAGE_STEPS`.
    """

    name: str
    source: str
    size: tuple[int, int]
    steps: Sequence[Any] = ()


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        name: its name within the suite.
        episodes: how many an evaluation has.
        max_steps: steps after which an episode has failed, waiting steps not counted.
        settings: what the benchmark's adapter needs to make and reset it.
    """

    name: str
    episodes: int
    max_steps: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """Tasks that are evaluated together. `tasks` is in the record's order."""

    name: str
    tasks: Mapping[str, Task]


@dataclass(frozen=True)
class BenchmarkRecord:
    """The protocol of one benchmark.

    Attributes:
        name: of the record, which is that of its environment.
        title, source: the benchmark, and who published it.
        protocol: "current", "published", or None for what holds if neither is asked for.
        install: the commands that install the simulator.
        robot_type, unnorm_key: embodiment and statistics of the policies that are scored here.
        robot_types: all embodiments that fit; by default `robot_type` alone.
        fps: control steps per simulated second.
        suites: suite → `Suite`.
        waiting_steps, waiting_action: what the robot does before the first observation, while objects settle.
        seeds: the seed rule: "rule" (words), "first" (seed of the first episode), and what the simulator itself takes.
        views: the images of an observation, in order.
        state: "names" of its dimensions, the "parts" that they are made of, the "recipe" in words, and whether it is "sent"
            to policies that do not say whether they use it; None if there is none.
        instruction: where the text comes from.
        chunk: which of a chunk's actions are executed; in YAML, the fields of a `ChunkRule`.
        action: "names", "low" and "high" in the policy's units, the "parts" (name → number of values) that names are made of,
            and the "steps" to the simulator's units.
        success: "rule" and "every"; see `SuccessRule`.
        score: "over" suites (the mean of their means, as without a rule) or tasks (the mean of all); by suite, "groups" of its tasks
            whose means are averaged, nested; and tasks to "exclude".
        unnormalization: how a StarVLA checkpoint's actions return to robot units, "current" or "published".
        results: what released checkpoints reach, in per cent, for the documentation.
        notes: what is known to go wrong.
    """

    name: str
    title: str
    source: str
    install: Sequence[str]
    robot_type: str
    fps: int
    suites: Mapping[str, Suite]
    views: Sequence[View]
    action: Mapping[str, Any]
    instruction: str
    seeds: Mapping[str, Any]
    chunk: ChunkRule
    success: Mapping[str, Any]
    protocol: str | None = None
    robot_types: Sequence[str] = ()
    unnorm_key: str | None = None
    waiting_steps: int = 0
    waiting_action: Sequence[float] = ()
    state: Mapping[str, Any] | None = None
    score: Mapping[str, Any] | None = None
    unnormalization: str = "current"
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def tasks(self) -> dict[str, Task]:
        """All tasks by their whole name, "SUITE/TASK"."""
        return {f"{s.name}/{t.name}": t for s in self.suites.values() for t in s.tasks.values()}

    def task(self, name: str) -> Task:
        """Return a task by its whole name or, for benchmarks whose tasks are named without their suite, by its own."""
        tasks = self.tasks
        return tasks[name] if name in tasks else next(task for task in tasks.values() if task.name == name)

    @property
    def action_low(self) -> np.ndarray:
        return np.array(self.action["low"], dtype=np.float32)

    @property
    def action_high(self) -> np.ndarray:
        return np.array(self.action["high"], dtype=np.float32)

    @property
    def success_rule(self) -> SuccessRule:
        return SuccessRule(self.success["rule"], self.success.get("every"))

    def mean_score(self, rates: Mapping[str, float], suites: Sequence[str] | None = None) -> float:
        """Return the benchmark's score, by its own rule, from the success rates of its tasks.

        Args:
            rates: whole task name → success rate.
            suites: which suites count; default: those of which a task has a rate.

        Raises:
            ValueError: a task that counts has no rate.
        """
        if suites is None:
            suites = [name for name in self.suites if any(task.startswith(f"{name}/") for task in rates)]
        if not suites:
            raise ValueError(f"no rates of tasks of {self.name} are given; got {', '.join(rates) or 'none'}")
        groups = (self.score or {}).get("groups", {})
        exclude = (self.score or {}).get("exclude", [])
        chosen = {
            suite: _whole_names(self.suites[suite], groups[suite])
            if suite in groups
            else [f"{suite}/{task}" for task in self.suites[suite].tasks]
            for suite in suites
        }
        if (self.score or {}).get("over") == "tasks":
            chosen = _flat(chosen)
        return nested_mean(rates, chosen, exclude)


def record_names() -> list[str]:
    """Return the names of the benchmarks that have a record."""
    return sorted({file.stem for file in _folder().iterdir() if file.suffix in (".yaml", ".json")})


@functools.lru_cache(maxsize=64)
def load_record(name: str, protocol: str | None = None) -> BenchmarkRecord:
    """Return a benchmark's record.

    Args:
        name: one of `record_names()`.
        protocol: "current" or "published"; None is what holds if neither is asked for.

    Raises:
        ValueError: there is no such record or protocol, or the record has a wrong key or value.
    """
    if name not in record_names():
        raise ValueError(
            f"there is no record of a benchmark {name!r}; possible: {', '.join(nearest_first(name, record_names()))}"
        )
    if protocol not in _VARIANTS:
        raise ValueError(f"unknown protocol {protocol!r}; possible: {', '.join(PROTOCOLS)}")
    return read_record(_read(name), name, protocol)


def read_record(content: Mapping[str, Any], name: str, protocol: str | None = None) -> BenchmarkRecord:
    """Check a record's content and return the record; see `load_record`."""
    try:
        return _record(content, name, protocol)
    except (KeyError, TypeError, ValueError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the record of the benchmark {name!r} is wrong: {told}") from error


def _record(content: Mapping[str, Any], name: str, protocol: str | None) -> BenchmarkRecord:
    content = copy.deepcopy(dict(content))
    overrides = {key: content.pop(key, None) or {} for key in ("default", "published")}
    for key, override in overrides.items():
        known = {f.name for f in dataclasses.fields(BenchmarkRecord)} - {"name", "protocol"}
        _check_keys(override, known, key)
    variant = _VARIANTS[protocol]
    if variant:
        content = _merged(content, overrides[variant])
    _check_keys(content, {f.name for f in dataclasses.fields(BenchmarkRecord)} - {"protocol"}, "the record")
    if content.get("name") != name:
        raise ValueError(f"its name is {content.get('name')!r}, and the file's {name!r}")
    for key in ("install", "notes", "results"):
        if isinstance(content.get(key, []), str):
            raise ValueError(f"{key} is a text; give a list")
    content["views"] = tuple(_view(view) for view in content["views"])
    content["suites"] = {suite: _suite(suite, given) for suite, given in content["suites"].items()}
    content["action"] = _action(content["action"])
    content.setdefault("robot_types", [content["robot_type"]])
    content["chunk"] = ChunkRule.from_dict(content["chunk"])
    if content.get("state"):
        _check_keys(content["state"], {"names", "sent", "recipe"}, "state")
        parts = _parts(content["state"]["names"])
        content["state"] = {**content["state"], "names": _numbered(parts), "parts": parts}
    _check_keys(content["success"], {"rule", "every"}, "success")
    SuccessRule(content["success"]["rule"], content["success"].get("every"))
    if "first" not in content["seeds"] or "rule" not in content["seeds"]:
        raise ValueError(f"seeds has {', '.join(content['seeds'])}; it needs first and rule")
    if content.get("unnormalization", "current") not in PROTOCOLS:
        raise ValueError(f"unnormalization is {content['unnormalization']!r}; possible: {', '.join(PROTOCOLS)}")
    record = BenchmarkRecord(protocol=protocol, **content)
    if record.waiting_steps and len(record.waiting_action) != len(record.action["names"]):
        raise ValueError(
            f"the waiting action has {len(record.waiting_action)} values, an action {len(record.action['names'])}"
        )
    _check_score(record)
    return record


def _view(given: Mapping[str, Any]) -> View:
    _check_keys(given, {"name", "source", "size", "steps"}, f"the view {given.get('name')!r}")
    for step in given.get("steps", ()):
        _check_step(step, IMAGE_STEPS, "image")
    return View(**{**given, "size": tuple(given["size"]), "steps": tuple(given.get("steps", ()))})


def _suite(name: str, given: Mapping[str, Any]) -> Suite:
    """Expand a suite: tasks by number, list or mapping, each in all combinations of the suite's variants."""
    _check_keys(given, {"tasks", "episodes", "max_steps", "settings", "variants"}, f"the suite {name!r}")
    tasks = given["tasks"]
    if isinstance(tasks, int):
        tasks = {str(number): {} for number in range(tasks)}
    elif not isinstance(tasks, Mapping):
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"the suite {name!r} names a task twice")
        tasks = {task: {} for task in tasks}
    expanded: dict[str, Task] = {}
    for task, own in tasks.items():
        settings = _merged(given.get("settings", {}), own or {})
        variants = settings.pop("variants", given.get("variants", {}))
        for variant, changes in variants.items() or [(None, {})]:
            chosen = _merged(settings, changes or {})
            whole = task if variant is None else f"{task}.{variant}"
            expanded[whole] = Task(
                name=whole,
                episodes=_positive(chosen.pop("episodes", given.get("episodes")), f"episodes of {name}/{whole}"),
                max_steps=_positive(chosen.pop("max_steps", given.get("max_steps")), f"max_steps of {name}/{whole}"),
                settings=chosen,
            )
    return Suite(name, expanded)


def _positive(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} is {value!r}; give a whole number from 1")
    return value


def _action(given: Mapping[str, Any]) -> dict[str, Any]:
    _check_keys(given, {"names", "low", "high", "steps"}, "action")
    for step in given.get("steps", ()):
        _check_step(step, ACTION_STEPS, "action")
    parts = _parts(given["names"])
    names = _numbered(parts)
    limits = {}
    for limit in ("low", "high"):
        values = given[limit] if isinstance(given[limit], list) else [given[limit]] * len(names)
        if len(values) != len(names):
            raise ValueError(f"action.{limit} has {len(values)} values for {len(names)} names")
        limits[limit] = values
    return {**given, **limits, "names": names, "parts": parts, "steps": tuple(given.get("steps", ()))}


def _parts(names: Any) -> dict[str, int]:
    """Part → number of dimensions, of names that are a list, or a mapping with these numbers."""
    return dict(names) if isinstance(names, Mapping) else {name: 1 for name in names}


def _numbered(parts: Mapping[str, int]) -> list[str]:
    return [f"{part}_{n}" if count > 1 else part for part, count in parts.items() for n in range(count)]


def _check_step(step: Any, known: Mapping[str, Any], what: str) -> None:
    if not isinstance(step, str) and not (isinstance(step, Mapping) and len(step) == 1):
        raise ValueError(f"an {what} step is {step!r}; give a name, or one name with its arguments")
    name, arguments = named_step(step)
    if name not in known:
        raise ValueError(f"unknown {what} step {name!r}; possible: {', '.join(nearest_first(name, known))}")
    code = known[name].__init__.__code__ if isinstance(known[name], type) else known[name].__code__
    _check_keys(arguments, set(code.co_varnames[1 : code.co_argcount]), f"the {what} step {name!r}")


def _check_score(record: BenchmarkRecord) -> None:
    if record.score is None:
        return
    _check_keys(record.score, {"over", "groups", "exclude"}, "score")
    if record.score.get("over", "suites") not in ("suites", "tasks"):
        raise ValueError(f"score.over is {record.score['over']!r}; possible: suites, tasks")
    tasks = record.tasks
    for suite, group in record.score.get("groups", {}).items():
        if suite not in record.suites:
            raise ValueError(f"score.groups names the suite {suite!r}; there are {', '.join(record.suites)}")
        for task in _flat(_whole_names(record.suites[suite], group)):
            if task not in tasks:
                raise ValueError(f"score.groups names the task {task!r}, which does not exist")
    for task in record.score.get("exclude", ()):
        if task not in tasks:
            raise ValueError(f"score.exclude names the task {task!r}, which does not exist")


def _whole_names(suite: Suite, group: Any) -> Any:
    """The group with whole names of tasks; a task that has variants becomes the list of them."""
    if isinstance(group, str):
        variants = [f"{suite.name}/{task}" for task in suite.tasks if task.startswith(f"{group}.")]
        return variants or f"{suite.name}/{group}"
    if isinstance(group, Mapping):
        return {name: _whole_names(suite, member) for name, member in group.items()}
    return [_whole_names(suite, member) for member in group]


def _flat(group: Any) -> list[str]:
    if isinstance(group, str):
        return [group]
    members = group.values() if isinstance(group, Mapping) else group
    return list(itertools.chain.from_iterable(_flat(member) for member in members))


def _check_keys(given: Mapping[str, Any], known: Any, where: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; give a mapping")
    for key in given:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r} in {where}; possible: {', '.join(nearest_first(key, sorted(known)))}"
            )


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _folder() -> Path:
    return Path(__file__).parent / "benchmarks"


def _read(name: str) -> dict[str, Any]:
    file = _folder() / f"{name}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    import yaml

    return yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
