"""A run of reinforcement learning as a recipe describes it: a policy, a simulator, PPO, and what the policy gained."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from transformers import set_seed
from transformers.utils import logging

from ..evaluation.collection import Collector, Context
from ..evaluation.environments import canonical_task, environment_class, make_environment
from ..evaluation.success import FIRST_VALIDATION_SEED
from ..inference.exploring import PredictingPolicy
from ..inference.policy import Policy
from ..training_args.arguments import VLATrainingArguments
from ..training_args.continued import check_continued, say_beyond_statistics
from ..training_args.peft import PeftArguments
from ..training_args.ppo_arguments import CollectionArguments, PPOArguments
from ..training_args.recipe import DataArguments, PolicyArguments, open_policy
from .checkpointing import checkpoint_to_resume
from .ppo_trainer import VLAPPOTrainer
from .run import start_or_continue

logger = logging.get_logger(__name__)

# Of simulators with any number of episodes: as many as no run uses up.
_MANY = 1_000_000


class LearningStarts(Sequence):
    """What a run's episodes start from: its tasks in turns, each with one seed after the other.

    Args:
        args: the run's; with the environments' settings.
        num_episodes: how many episodes the simulator has, if a seed is the number of one.
    """

    def __init__(self, args: CollectionArguments, settings: Mapping[str, Any], num_episodes: int | None):
        self._tasks = args.tasks
        self._first, self._number = (0, num_episodes) if num_episodes is not None else (args.first_seed, _MANY)
        self.name = f"{args.env}: {', '.join(args.tasks)}"
        self.identity = {
            "env": args.env,
            "tasks": list(args.tasks),
            "settings": dict(settings),
            "first_seed": self._first,
        }

    def __len__(self) -> int:
        return len(self._tasks) * self._number

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        seed, task = divmod(number, len(self._tasks))
        return {"task": self._tasks[task], "seed": self._first + seed}


class Validation:
    """The success rate on the same episodes each time, as the trainer's `closed_loop`."""

    def __init__(
        self, collect: Collector, tasks: Sequence[str], episodes: int, first_seed: int, unnorm_key: str | None
    ):
        self._collect, self._unnorm_key, self.tasks = collect, unnorm_key, list(tasks)
        self._contexts = [
            Context(task, seed, seed) for task in tasks for seed in range(first_seed, first_seed + episodes)
        ]

    @property
    def metric_names(self) -> list[str]:
        return ["success", *(f"success/{task}" for task in self.tasks)]

    def __call__(self, model, processor) -> dict[str, float]:
        episodes = self._collect(self._contexts, PredictingPolicy(Policy(model, processor, self._unnorm_key)))
        solved = {task: [e.success for e in episodes if e.context.task == task] for task in self.tasks}
        rates = {f"success/{task}": sum(found) / len(found) for task, found in solved.items()}
        return {"success": sum(e.success for e in episodes) / len(episodes), **rates}


def train_by_acting(
    policy_args: PolicyArguments,
    peft_args: PeftArguments,
    collection_args: CollectionArguments,
    ppo_args: PPOArguments,
    args: VLATrainingArguments,
    *,
    given: Mapping[str, Any] | None = None,
    before_learning: Callable[[], None] | None = None,
) -> VLAPPOTrainer:
    """Train a policy by letting it act, or continue an interrupted run, and write the policy to `args.output_dir`.

    Args:
        policy_args: the policy to start from (`policy`).
        peft_args: whether and how an adapter is trained instead of the policy.
        collection_args: simulator, tasks and processes; demonstrations.
        ppo_args: how it learns.
        args: everything else.
        given: the training arguments that were set explicitly, for `OUTPUT/config.yaml`; by default none.
        before_learning: called in the main process when all is checked and an earlier run's checkpoints are removed, if
            `args.overwrite_output_dir` is set; such as a test of the policy that the run starts from.

    Returns:
        The trainer, after training.

    Raises:
        ValueError: settings that contradict each other, the policy or the simulator.
    """
    for name in ("per_device_train_batch_size", "global_batch_size"):
        if name in (given or {}):
            raise ValueError(
                f"leave out {name}: a step's chunks follow from minibatches and gradient_accumulation_steps"
            )
    if not policy_args.policy:
        raise ValueError("set policy: reinforcement learning starts from a policy that sometimes succeeds")
    env, tasks = collection_args.env, [canonical_task(collection_args.env, task) for task in collection_args.tasks]
    collection_args.tasks = list(dict.fromkeys(tasks))
    settings = {**environment_class(env).practice_settings, **collection_args.env_config}
    checkpoint = checkpoint_to_resume(args)
    set_seed(args.seed)
    model, processor, demonstrations = _load(policy_args, peft_args, collection_args.demonstrations, args)
    environments = {task: functools.partial(make_environment, env, task, **settings) for task in collection_args.tasks}
    with Collector(
        environments,
        num_workers=collection_args.num_workers,
        environments_per_worker=collection_args.environments_per_worker,
        workers=_remote(collection_args, settings),
        execute_steps=ppo_args.execute_steps,
        timeout=collection_args.worker_timeout,
    ) as collect:
        facts = {task: collect.facts(task) for task in collection_args.tasks}  # what can't be learned from fails here
        number = _number_of_episodes({task: of_task.num_episodes for task, of_task in facts.items()})
        validation = None
        if args.eval_strategy != "no":
            episodes, first = collection_args.validation_episodes, FIRST_VALIDATION_SEED
            if number is not None:
                first = 0
                _check_validation(episodes, number)
            validation = Validation(collect, collection_args.tasks, episodes, first, ppo_args.unnorm_key)
        trainer = VLAPPOTrainer(
            model,
            args,
            ppo_args,
            train_dataset=LearningStarts(collection_args, settings, number),
            collect=collect,
            demonstrations=demonstrations,
            processing_class=processor,
            closed_loop=validation,
        )
        parts = (policy_args, peft_args, collection_args, ppo_args)
        start_or_continue(trainer, checkpoint, parts, given or {}, before_learning)
    return trainer


def _load(policy_args: PolicyArguments, peft_args: PeftArguments, demonstrations: Sequence[str] | None, args):
    """Return the model, its processor, and the dataset of demonstrations or None."""
    model, processor = open_policy(policy_args, **peft_args.loading_options(policy_args, args))
    dataset = None
    if demonstrations:
        data_args = DataArguments(dataset=list(demonstrations))
        dataset = data_args.build(model.config.action_horizon, args.seed)
        check_continued(processor, dataset.datasets, data_args, policy_args.policy, policy_args.new_inputs)
        say_beyond_statistics(processor.statistics, dataset.statistics, policy_args.policy)
    if peft_args.use_peft:
        from .lora import add_adapter  # needs peft

        model = add_adapter(model, policy_args, peft_args)
    return model, processor, dataset


def _number_of_episodes(of_tasks: Mapping[str, int | None]) -> int | None:
    """Return how many episodes each task's simulator has, None if any seed makes one."""
    if len(set(of_tasks.values())) > 1:
        told = ", ".join(f"{task} {'any number' if number is None else number}" for task, number in of_tasks.items())
        raise ValueError(f"the tasks have different numbers of episodes ({told}); learn them in separate runs")
    return next(iter(of_tasks.values()))


def _check_validation(episodes: int, number: int) -> None:
    if episodes > number:
        raise ValueError(
            f"validation_episodes is {episodes}, and each task has {number} episodes; set that many or fewer"
        )
    logger.warning(
        f"each task has {number} episodes, of which validation runs the first {episodes}: the policy learns from these too, so that "
        "eval_success tells less than an evaluation on others"
    )


def _remote(args: CollectionArguments, settings: Mapping[str, Any]) -> list:
    if not args.collectors:
        return []
    from ..evaluation.remote_simulators import remote_workers

    with ExitStack() as on_failure:
        workers = []
        for address in args.collectors:
            for worker in remote_workers(address, args.env, settings, timeout=args.worker_timeout):
                on_failure.callback(worker.close)
                workers.append(worker)
        on_failure.pop_all()
    return workers


__all__ = ["LearningStarts", "Validation", "train_by_acting"]
