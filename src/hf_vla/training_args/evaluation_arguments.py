"""Arguments for evaluation during training; `eval_strategy` and `eval_steps` say when it happens."""

from dataclasses import dataclass, field

from .recipe import _as_dict


@dataclass
class EvaluationArguments:
    """What a policy is evaluated on while it is trained; see docs/training.md.

    Args:
        eval_episodes: episodes of each training dataset to hold out, as a number or a fraction below 1. They are not
            trained on, not counted in the statistics, and evaluated on in open loop.
        eval_split: which episodes to hold out: "random" or "last".
        eval_split_seed: seed of the random choice. It is independent of `seed`, so that runs with different seeds are
            evaluated on the same episodes.
        eval_dataset: LeRobot datasets to evaluate on in full, in open loop.
        eval_samples: the number of frames to evaluate on, evenly spread over all of them; by default all.
        eval_env: simulator to evaluate in, in closed loop.
        eval_tasks: tasks of the simulator.
        eval_env_episodes: episodes per task.
        eval_env_config: further settings of the simulator, such as image_size.
        eval_execute_steps: how many actions of a chunk to execute; by default as in `hf-vla eval`.
        eval_unnorm_key: statistics key of the simulated robot, needed if the policy has several.
    """

    eval_episodes: float | None = field(
        default=None, metadata={"help": "episodes of each dataset to hold out: a number, or a fraction below 1"}
    )
    eval_split: str = field(default="random", metadata={"help": "which episodes to hold out: random or last"})
    eval_split_seed: int = field(default=0, metadata={"help": "seed of the random choice of held-out episodes"})
    eval_dataset: list[str] | None = field(default=None, metadata={"help": "LeRobot datasets to evaluate on"})
    eval_samples: int | None = field(default=None, metadata={"help": "number of frames to evaluate on; default: all"})
    eval_env: str | None = field(default=None, metadata={"help": "simulator to evaluate in, in closed loop"})
    eval_tasks: list[str] | None = field(default=None, metadata={"help": "tasks of eval_env"})
    eval_env_episodes: int = field(default=10, metadata={"help": "episodes per task of eval_tasks"})
    eval_env_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: further settings of eval_env, such as image_size"}
    )
    eval_execute_steps: int | None = field(
        default=None, metadata={"help": "actions of a chunk to execute in eval_env; default: 5, or all if fewer"}
    )
    eval_unnorm_key: str | None = field(
        default=None, metadata={"help": "statistics key of eval_env's robot, if the policy has several"}
    )

    def __post_init__(self):
        self.eval_env_config = _as_dict(self.eval_env_config, "eval_env_config")
        count = self.eval_episodes
        if count is not None and not (0 < count < 1 or (count >= 1 and count == int(count))):
            raise ValueError(
                f"eval_episodes is {count}; give a number of episodes (1, 2, …) or a fraction between 0 and 1"
            )
        if self.eval_split not in ("random", "last"):
            raise ValueError(f"eval_split is {self.eval_split!r}; possible: random, last")
        for name in ("eval_samples", "eval_env_episodes", "eval_execute_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if bool(self.eval_env) != bool(self.eval_tasks):
            raise ValueError(
                f"eval_env is {self.eval_env!r} and eval_tasks {self.eval_tasks}: closed-loop evaluation needs both"
            )
        of_env = [n for n in ("eval_env_config", "eval_execute_steps", "eval_unnorm_key") if getattr(self, n)]
        if of_env and not self.eval_env:
            raise ValueError(f"{', '.join(of_env)} belong to eval_env, which is not set")
        if self.eval_samples and not self.open_loop:
            raise ValueError(
                "eval_samples says how many frames of eval_episodes or eval_dataset count; neither is set"
            )

    @property
    def open_loop(self) -> bool:
        """Whether there are episodes or datasets to evaluate on in open loop."""
        return self.eval_episodes is not None or bool(self.eval_dataset)

    def check_strategy(self, eval_strategy: str) -> None:
        """Raise a ValueError if `eval_strategy` evaluates but there is nothing to evaluate on, or the reverse."""
        something = self.open_loop or bool(self.eval_env)
        if something and eval_strategy == "no":
            named = [n for n in ("eval_episodes", "eval_dataset", "eval_env") if getattr(self, n)]
            raise ValueError(
                f"{', '.join(named)} say what to evaluate on, but eval_strategy is 'no'; "
                "set eval_strategy: steps and eval_steps: N"
            )
        if eval_strategy != "no" and not something:
            raise ValueError(
                f"eval_strategy is {str(eval_strategy)!r}, but there is nothing to evaluate on; set eval_episodes (held-out "
                "episodes), eval_dataset or eval_env"
            )


__all__ = ["EvaluationArguments"]
