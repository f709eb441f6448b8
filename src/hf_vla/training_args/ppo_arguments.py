"""`PPOArguments`: how a policy learns by acting; and where it acts, for `hf-vla rl`."""

import math
from dataclasses import dataclass, field

from ..modeling.exploration import NOISY_STEPS

ADVANTAGES = ("gae", "rloo", "grpo")
REWARDS = ("sparse", "dense")


#: field -> is it a whole number, its least value, what it must be above, its largest value
_BOUNDS = {
    "iterations": (True, 1, None, None),
    "episodes_per_iteration": (True, 1, None, None),
    "group_size": (True, 2, None, None),
    "epochs": (True, 1, None, None),
    "minibatches": (True, 1, None, None),
    "gamma": (False, None, 0, 1),
    "gae_lambda": (False, 0, None, 1),
    "clip_low": (False, None, 0, 1),
    "clip_high": (False, None, 0, None),
    "dual_clip": (False, 0, None, None),
    "target_kl": (False, 0, None, None),
    "reward_scale": (False, None, 0, None),
    "execute_steps": (True, 1, None, None),
    "learned_std_learning_rate": (False, 0, None, None),
    "critic_learning_rate": (False, 0, None, None),
    "critic_epochs": (True, 1, None, None),
    "critic_minibatch_size": (True, 1, None, None),
    "critic_hidden_size": (True, 1, None, None),
    "critic_warmup_iterations": (True, 0, None, None),
    "value_clip": (False, 0, None, None),
    "imitation_weight": (False, 0, None, None),
    "imitation_batch_size": (True, 1, None, None),
    "sampling_batch_size": (True, 1, None, None),
    "save_every": (True, 1, None, None),
    "evaluate_every": (True, 1, None, None),
    "first_seed": (True, 0, None, None),
    "num_workers": (True, 0, None, None),
    "environments_per_worker": (True, 1, None, None),
    "worker_timeout": (False, None, 0, None),
    "validation_episodes": (True, 1, None, None),
    "test_episodes": (True, 0, None, None),
    "test_seed": (True, 0, None, None),
}


@dataclass
class PPOArguments:
    """Arguments of [`~hf_vla.training.ppo_trainer.VLAPPOTrainer`]; see docs/reinforcement_learning.md.

    Args:
        iterations: how often episodes are collected and learned from. The policy is saved after an iteration only.
        episodes_per_iteration: over all processes.
        advantage: "gae" (a critic estimates returns), "rloo" or "grpo" (episodes from the same start are compared).
        group_size: for rloo and grpo: episodes from the same start. Groups in which all have the same return are dropped.
        epochs, minibatches: how often an iteration's chunks are learned from, and in how many steps each time.
        gamma, gae_lambda: per chunk.
        clip_low, clip_high: the ratio of probabilities is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: limits the loss of chunks that have become likely though they were bad; 0 is off.
        target_kl: an iteration ends when its approximate KL divergence is above it; 0 is off.
        normalize_advantages: to mean 0 and standard deviation 1 over the iteration's chunks.
        reward: "sparse", 1 when the task is solved; or "dense": also the simulator's own of each step, plus reward_offset, times
            reward_scale. An episode ends when the task is solved: rewards above 0 make waiting worth more than solving, unless
            reward_offset brings them below.
        reward_offset, reward_scale: of the simulator's own reward; MetaWorld's is between 0 and 10.
        noisy_steps, noise_level, noise_correlation, std, temperature, num_inference_steps: how the policy explores; see
            `hf_vla.Exploration`.
        learned_std: instead of noise_level or std: learn the standard deviations with the policy, between 0.08 and 0.16; for
            policies that denoise or regress actions. They are saved beside the policy, which does not need them.
        learned_std_learning_rate: of them.
        execute_steps: actions of a chunk that are executed, and whose probabilities count.
        critic_learning_rate, critic_epochs, critic_minibatch_size, critic_hidden_size: of the critic, for gae.
        critic_warmup_iterations: iterations at the start in which only the critic learns.
        value_clip: how far the critic's values move in an iteration, roughly; 0 is off.
        imitation_weight: weight of the imitation loss on demonstrations, beside PPO's.
        imitation_batch_size: demonstrated chunks per process and step of it.
        keep_states: with a frozen backbone, keep its states instead of the images: updates only run the head, and use more
            memory. By default so if the backbone is frozen and an iteration's states fit into 4 GB.
        sampling_batch_size: observations per call of the policy while it collects; by default all that wait.
        unnorm_key: statistics key of the simulated robot; optional if the policy has only one.
        save_every: iterations between checkpoints, with save_strategy "epoch".
        evaluate_every: iterations between evaluations, with eval_strategy "epoch".
    """

    iterations: int = field(default=24, metadata={"help": "times that episodes are collected and learned from"})
    episodes_per_iteration: int = field(default=48, metadata={"help": "episodes of an iteration, over all processes"})
    advantage: str = field(default="gae", metadata={"help": "gae, rloo or grpo"})
    group_size: int = field(default=8, metadata={"help": "for rloo and grpo: episodes from the same start"})
    epochs: int = field(default=4, metadata={"help": "times that an iteration's chunks are learned from"})
    minibatches: int = field(default=6, metadata={"help": "optimizer steps per epoch"})
    gamma: float = field(default=0.99, metadata={"help": "discount per chunk"})
    gae_lambda: float = field(default=0.95, metadata={"help": "lambda of GAE, per chunk"})
    clip_low: float = field(default=0.2, metadata={"help": "the ratio is clipped at 1 - clip_low"})
    clip_high: float = field(default=0.28, metadata={"help": "the ratio is clipped at 1 + clip_high"})
    dual_clip: float = field(default=3.0, metadata={"help": "limit of the loss of bad chunks, in advantages; 0: none"})
    target_kl: float = field(
        default=0.05, metadata={"help": "approximate KL divergence that ends an iteration; 0: none"}
    )
    normalize_advantages: bool = field(default=True, metadata={"help": "to mean 0 and deviation 1 over an iteration"})
    reward: str = field(default="sparse", metadata={"help": "sparse (1 for success), or dense (also the simulator's)"})
    reward_scale: float = field(default=0.01, metadata={"help": "factor of the simulator's own reward, for dense"})
    reward_offset: float = field(default=0.0, metadata={"help": "added to the simulator's own reward of each step"})
    noisy_steps: str | None = field(default=None, metadata={"help": f"flow policies: {', '.join(NOISY_STEPS)}"})
    noise_level: float | None = field(
        default=None, metadata={"help": "flow policies: level of the noise, default 0.5"}
    )
    noise_correlation: float | None = field(
        default=None, metadata={"help": "of the noise of neighbouring steps of a chunk, below 1; default 0"}
    )
    std: float | None = field(default=None, metadata={"help": "OFT, Adapter: standard deviation, default 0.082"})
    temperature: float | None = field(default=None, metadata={"help": "FAST, discrete diffusion: temperature"})
    num_inference_steps: int | None = field(default=None, metadata={"help": "denoising steps while collecting"})
    learned_std: bool = field(default=False, metadata={"help": "learn the noise instead: flow policies, OFT, Adapter"})
    learned_std_learning_rate: float = field(default=3e-3, metadata={"help": "learning rate of the learned noise"})
    execute_steps: int = field(default=5, metadata={"help": "actions of a chunk that are executed"})
    critic_learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the critic"})
    critic_epochs: int = field(default=10, metadata={"help": "epochs of the critic in an iteration"})
    critic_minibatch_size: int = field(
        default=256, metadata={"help": "chunks per step of the critic, over all processes"}
    )
    critic_hidden_size: int = field(default=256, metadata={"help": "width of the critic's layers"})
    critic_warmup_iterations: int = field(default=1, metadata={"help": "iterations in which only the critic learns"})
    value_clip: float = field(default=0.2, metadata={"help": "clip of the critic's values; 0: none"})
    imitation_weight: float = field(default=0.0, metadata={"help": "weight of the imitation loss on demonstrations"})
    imitation_batch_size: int = field(default=32, metadata={"help": "demonstrated chunks per step and process"})
    keep_states: bool | None = field(
        default=None, metadata={"help": "keep a frozen backbone's states; default: if they fit"}
    )
    sampling_batch_size: int | None = field(default=None, metadata={"help": "observations per call while collecting"})
    unnorm_key: str | None = field(default=None, metadata={"help": "statistics key, if the policy has several"})
    save_every: int = field(default=1, metadata={"help": "iterations between checkpoints"})
    evaluate_every: int = field(default=5, metadata={"help": "iterations between evaluations"})

    def __post_init__(self):
        check_numbers(self)
        check_choice(self, "advantage", ADVANTAGES)
        check_choice(self, "reward", REWARDS)
        if self.advantage != "gae" and self.episodes_per_iteration % self.group_size:
            raise ValueError(
                f"episodes_per_iteration is {self.episodes_per_iteration}, not a multiple of group_size, {self.group_size}: "
                f"{self.advantage} compares groups of episodes from the same start"
            )


#: The first seed that episodes are collected with, far from those of demonstrations (0), evaluations (10,000) and validations
#: during training (1,000,000).
FIRST_LEARNING_SEED = 2_000_000


@dataclass
class CollectionArguments:
    """Where a policy acts while it learns, for `hf-vla rl`.

    Args:
        env, tasks: simulator and its tasks, which take turns.
        env_config: further settings of the simulator, such as max_steps.
        first_seed: of the first episode; later ones count up. With episodes of which there is a fixed number, these take turns.
        demonstrations: LeRobot datasets for `imitation_weight`.
        num_workers: processes with simulators, per training process.
        environments_per_worker: simulators in each of them; the more there are, the larger the policy's batches.
        collectors: addresses `ws://host:port` of further machines' simulators, which `hf-vla simulate` serves.
        worker_timeout: seconds after which a process that does not answer is started again.
        validation_episodes: episodes per task of an evaluation during training, with eval_strategy "epoch".
        test_episodes: held-out episodes per task of the table before and after; 0: no table.
        test_seed: the first of their seeds; by default that of `hf-vla eval`.
        controls: whether the table has the policy blind and untrained.
    """

    env: str = field(default="metaworld", metadata={"help": "simulator"})
    tasks: list[str] | None = field(default=None, metadata={"help": "tasks of the simulator"})
    env_config: dict | str | None = field(default=None, metadata={"help": "JSON: settings of it, such as max_steps"})
    first_seed: int = field(default=FIRST_LEARNING_SEED, metadata={"help": "seed of the first collected episode"})
    demonstrations: list[str] | None = field(
        default=None, metadata={"help": "LeRobot datasets to imitate meanwhile, with imitation_weight"}
    )
    num_workers: int = field(default=2, metadata={"help": "processes with simulators, per training process"})
    environments_per_worker: int = field(default=8, metadata={"help": "simulators in each of them"})
    collectors: list[str] | None = field(
        default=None, metadata={"help": "ws://host:port of hf-vla simulate elsewhere"}
    )
    worker_timeout: float = field(
        default=600.0, metadata={"help": "seconds after which a silent process is started again"}
    )
    validation_episodes: int = field(default=32, metadata={"help": "episodes per task of evaluations during training"})
    test_episodes: int = field(default=100, metadata={"help": "held-out episodes per task, before and after"})
    test_seed: int | None = field(
        default=None, metadata={"help": "first of their seeds; default: that of hf-vla eval"}
    )
    controls: bool = field(default=True, metadata={"help": "also test the policy blind and untrained"})

    def __post_init__(self):
        from .recipe import _as_dict

        check_numbers(self)
        self.env_config = _as_dict(self.env_config, "env_config")
        if isinstance(self.tasks, str):
            self.tasks = [self.tasks]
        self.tasks = [task for part in self.tasks or [] for task in part.split(",") if task]
        if not self.tasks:
            raise ValueError("tasks is not set: name the simulator's tasks that the policy is to learn")
        if not self.num_workers and not self.collectors:
            raise ValueError("num_workers is 0 and there are no collectors; set one of them")


def check_numbers(arguments) -> None:
    """Raise a ValueError if a field that is a number is outside of its bounds; None is allowed where it is the default."""
    for name in arguments.__dataclass_fields__.keys() & _BOUNDS.keys():
        (whole, least, above, most), value = _BOUNDS[name], getattr(arguments, name)
        if value is None and arguments.__dataclass_fields__[name].default is None:
            continue
        fits = (
            isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        fits = fits and (least is None or value >= least) and (above is None or value > above)
        if not fits or (most is not None and value > most):
            bounds = (("at least", least), ("above", above), ("at most", most))
            told = ", ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
            raise ValueError(f"{name} is {value!r}; it must be a {'whole ' * whole}number, {told}")


def check_choice(arguments, name: str, possible: tuple[str, ...]) -> None:
    if (value := getattr(arguments, name)) not in possible:
        raise ValueError(f"{name} is {value!r}; possible: {', '.join(possible)}")


__all__ = ["FIRST_LEARNING_SEED", "CollectionArguments", "PPOArguments"]
