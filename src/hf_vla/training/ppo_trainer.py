"""`VLAPPOTrainer`: the trainer of policies, learning from episodes that the policy itself runs (PPO on action chunks)."""

import contextlib
import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..data import VLADataCollator
from ..evaluation.collection import CollectedEpisode, Context
from ..inference.exploring import ExploringPolicy, SampledChunk
from ..inference.fingerprint import fingerprint
from ..inference.policy import Policy
from ..modeling.critic import Critic
from ..modeling.exploration import Exploration
from ..training_args.arguments import VLATrainingArguments
from ..training_args.ppo_arguments import PPOArguments
from ..utils.episode_seeds import draw_seed
from .checkpointing import find_checkpoint
from .critic_fitting import CriticFitting
from .engines import copy_full_weights, shards_weights
from .ppo import explained_variance, policy_losses
from .ppo_buffer import Buffer, EpisodeFacts, chunk_rewards, stacked, stacked_traces
from .rl_curves import plot_learning
from .std_fitting import StdFitting
from .trainer import VLATrainer

logger = logging.get_logger(__name__)

STATE_FILE = "rl_state.json"
#: Log-ratios before any update are 0 up to rounding.
_MOST_FIRST_LOG_RATIO = 1e-3
#: A backbone's states are kept by default if an iteration's take no more bytes than this.
_MOST_STATE_BYTES = 4e9
# Groups that all succeed or all fail teach nothing; if there are only such, further ones are collected, but not forever.
_MOST_COLLECTIONS = 5


class VLAPPOTrainer(VLATrainer):
    """Trains a policy by PPO on the action chunks of episodes that it runs itself.

    One epoch of the Trainer is an iteration: episodes are collected with the current weights, and their chunks are learned from
    `ppo_args.epochs` times in `ppo_args.minibatches` optimizer steps each, in `gradient_accumulation_steps` parts. Everything
    else is the trainer's: learning rates of modules, frozen modules, adapters, averaged weights, DDP and FSDP, logs, and
    checkpoints, at the end of an iteration: a run that was stopped within one repeats it from its start.

    Args:
        model: a policy model, as for `VLATrainer`.
        args: [`VLATrainingArguments`]; `save_strategy` and `eval_strategy` are "no" or "epoch", `max_steps` is not set.
        ppo_args: [`PPOArguments`].
        train_dataset: what episodes start from, a sequence of `{"task": …, "seed": …}`, read in order, again and again. It may have
            an `identity`, a JSON object that a resumed run must share; by default its tasks.
        collect: called as `collect(contexts, policy) → episodes`, such as a [`~hf_vla.evaluation.collection.Collector`].
        critic: for `advantage="gae"`; by default a new one.
        demonstrations: a dataset of demonstrations for `imitation_weight`, items as in `LeRobotDataset`.
        processing_class: the policy's processor.
        kwargs: as for `VLATrainer`.

    Raises:
        ValueError: settings that contradict each other or the policy; all are checked before the first episode.
    """

    def __init__(
        self,
        model=None,
        args: VLATrainingArguments | None = None,
        ppo_args: PPOArguments | None = None,
        *,
        train_dataset: Sequence[Mapping[str, Any]],
        collect: Callable[..., list[CollectedEpisode]],
        critic: Critic | None = None,
        demonstrations=None,
        processing_class=None,
        **kwargs,
    ):
        self.ppo_args = ppo_args = ppo_args or PPOArguments()
        if processing_class is None:
            raise ValueError("pass the policy's processor as processing_class: observations go through it")
        _check_arguments(args, ppo_args, train_dataset, demonstrations)
        args.num_train_epochs = ppo_args.iterations
        if args.logging_strategy != "no":
            args.logging_strategy = IntervalStrategy.EPOCH
        self.exploration = _exploration(model, ppo_args, args.seed)
        if self.exploration.learned_std is not None and args.fp16:
            raise ValueError(
                "learned_std is set, and fp16, whose gradients are scaled for the policy's optimizer only: set bf16"
            )
        if rates := switch_off_dropout(model):
            logger.warning(f"dropout ({rates}) is off while the policy learns by acting: probabilities would be noise")
        self._demonstrations = demonstrations
        if demonstrations is not None:
            self._collate_demonstrations = kwargs.get("data_collator") or VLADataCollator(processing_class)
        starts = Starts(train_dataset, fingerprint(model, processing_class))
        super().__init__(model, args, train_dataset=starts, processing_class=processing_class, **kwargs)
        # Each process collects by itself, which it can't with a part of the weights.
        self._copy = copy.deepcopy(self.model).to(args.device).eval() if shards_weights(self.accelerator) else None
        self._collect = collect
        self._policy = Policy(self._copy or self._unwrapped(), processing_class, ppo_args.unnorm_key)
        self.critic: CriticFitting | None = None
        if ppo_args.advantage == "gae":
            critic = critic or Critic.for_policy(self._policy.model, ppo_args.critic_hidden_size)
            critic.to(args.device).load_state_dict(broadcast(critic.state_dict()))
            self.critic = CriticFitting(critic, ppo_args, self._sum)
        self.std: StdFitting | None = None
        if (learned := self.exploration.learned_std) is not None:
            learned.to(args.device).load_state_dict(broadcast(learned.state_dict()))
            only_last = (self.exploration.noisy_steps or "last") == "last"
            self.std = StdFitting(learned, ppo_args.learned_std_learning_rate, self._mean, only_last)
        self._keep_states: bool | None = ppo_args.keep_states
        self._check_keep_states()
        self._batches = _Batches(self)
        #: What a resumed run goes on from: counts over all processes and iterations.
        self.progress = {
            "iteration": 0,
            "starts": 0,
            "episodes": 0,
            "environment_steps": 0,
            "demonstrated": 0,
            "seconds": 0.0,
        }
        self._resumed: dict[str, Any] = {}
        self._logged: dict[str, float] = {}
        self._figures: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(2))
        self._step_kl = torch.zeros(2)
        self.add_callback(_Iterations(self))

    @property
    def own_arguments(self) -> dict[str, Any]:
        """Return what of the run's identity may change when it resumes, with a warning."""
        return vars(self.ppo_args)

    def get_total_train_batch_size(self, args) -> int:
        """Return what neither processes nor accumulation change, as they don't change a run: the minibatches make up its steps."""
        return args.train_batch_size

    # ---------------------------------------------------------------------------------------------- an iteration's episodes

    def get_train_dataloader(self) -> "_Batches":
        return self._batches

    def batches_of(self, iteration: int) -> Iterator[dict]:
        """Collect an iteration's episodes, and yield the parts of its optimizer steps; the Trainer's loop reads them."""
        self._iteration_began, self._seconds_collecting = time.perf_counter(), 0.0
        buffer = self._collected(iteration)
        args = self.ppo_args
        parts = [buffer.parts(args.minibatches, [self.args.seed, iteration, epoch]) for epoch in range(args.epochs)]
        first = (batch for rows, count in parts[0] for batch in self._micro_batches(buffer, rows, count))
        self._measure_old_log_probs(buffer, first)
        for epoch in range(args.epochs):
            for number, (rows, count) in enumerate(parts[epoch]):
                for batch in self._micro_batches(buffer, rows, count):
                    batch["ppo"]["is_first"] = torch.tensor(epoch == 0 and number == 0)
                    yield batch

    def _collected(self, iteration: int) -> Buffer:
        """Collect until there is something to learn from; in the beginning, train the critic alone."""
        warmup = self.ppo_args.critic_warmup_iterations if self.critic is not None and iteration == 0 else 0
        for number in range(warmup):
            buffer = self._one_collection(f"critic {number + 1}/{warmup}")
            self._use_critic(buffer, [self.args.seed, iteration, 1000 + number])
        for number in range(_MOST_COLLECTIONS):
            again = f", collection {number + 1}" if number else ""
            buffer = self._one_collection(f"iteration {iteration + 1}/{self.ppo_args.iterations}{again}")
            if buffer.total:
                break
            logger.warning("all groups succeed or all fail: there is nothing to learn from them, others are collected")
        else:
            rate = sum(one.success for one in buffer.facts) / len(buffer.facts)
            raise ValueError(
                f"{_MOST_COLLECTIONS} collections of groups, and in each all episodes had the same return (success rate {rate:.2f}): "
                f"{self.ppo_args.advantage} has nothing to compare. Start from a policy that sometimes succeeds and sometimes "
                "fails, explore more, enlarge group_size, or use advantage: gae with reward: dense"
            )
        if self.critic is None:
            buffer.compare_groups()
        else:
            self._use_critic(buffer, [self.args.seed, iteration, 0])
        self._scale_advantages(buffer)
        return buffer

    def _one_collection(self, name: str) -> Buffer:
        args, process = self.ppo_args, self.accelerator.process_index
        began = time.perf_counter()
        copies = args.group_size if args.advantage != "gae" else 1
        first, number = self.progress["starts"], args.episodes_per_iteration // copies
        contexts = [
            Context(
                **self.train_dataset[start % len(self.train_dataset)],
                policy_seed=draw_seed(self.args.seed, start * copies + member),
            )
            for start in range(first, first + number)
            for member in range(copies)
        ]
        own = range(process, len(contexts), self.accelerator.num_processes)
        progress = name if self.is_world_process_zero() and not self.args.disable_tqdm else None
        collected = self._collect([contexts[i] for i in own], self._exploring_policy(), progress=progress)
        episodes = dict(zip(own, collected, strict=True))
        facts = [
            EpisodeFacts(i, episode.success, episode.length, sum(chunk_rewards(episode, args)), len(episode.chunks))
            for i, episode in episodes.items()
        ]
        facts = sorted(gather_object(facts), key=lambda one: one.index)
        buffer = Buffer(episodes, facts, args)
        seconds = time.perf_counter() - began
        self._seconds_collecting += seconds
        self.progress["starts"] += number
        self.progress["episodes"] += len(facts)
        self.progress["environment_steps"] += sum(one.length for one in facts)
        self.progress["seconds"] += seconds
        groups = buffer.groups()
        self._logged |= {
            "rollout/success_once": float(np.mean([one.success for one in facts])),
            "rollout/episode_length": float(np.mean([one.length for one in facts])),
            "rollout/return": float(np.mean([one.score for one in facts])),
            "rollout/episodes": self.progress["episodes"],
            "rollout/environment_steps": self.progress["environment_steps"],
            "rollout/repeated_episodes": getattr(self._collect, "repeated", 0),
            "seconds/collection": self._seconds_collecting,
        }
        if copies > 1:
            dropped = sum(all(one.index not in buffer.kept for one in group) for group in groups.values())
            self._logged["rollout/groups_dropped"] = dropped / len(groups)
        return buffer

    def _exploring_policy(self) -> ExploringPolicy:
        self._policy.model.eval()
        if self._copy is not None:
            began = time.perf_counter()
            copy_full_weights(self._unwrapped(), self._copy)
            self._logged["seconds/synchronization"] = time.perf_counter() - began
        return ExploringPolicy(
            self._policy,
            self.exploration,
            critic=None if self.critic is None else self.critic.critic,
            keep_states=bool(self._keep_states),
            batch_size=self.ppo_args.sampling_batch_size,
            context=self.compute_loss_context_manager,
        )

    def _use_critic(self, buffer: Buffer, seed: list[int]) -> None:
        self.critic.start(buffer)
        buffer.set_values(self.critic.values(buffer))
        pairs = gather_object([(buffer.values, buffer.returns)])
        values, returns = (np.concatenate(x) for x in zip(*pairs, strict=True))
        self._logged["critic/explained_variance"] = explained_variance(values, returns)
        self._logged["critic/mean_value"] = float(values.mean())
        self._logged |= {f"critic/{name}": value for name, value in self.critic.fit(buffer, seed).items()}

    def _scale_advantages(self, buffer: Buffer) -> None:
        found = np.concatenate(gather_object([buffer.advantages]))
        self._logged |= {
            "adv/mean": float(found.mean()),
            "adv/max": float(found.max()),
            "adv/min": float(found.min()),
            "rollout/chunks": len(found),
        }
        if self.ppo_args.normalize_advantages:
            buffer.advantages = (buffer.advantages - found.mean()) / (found.std() + 1e-5)

    # ------------------------------------------------------------------------------------------------------------- the update

    def _micro_batches(self, buffer: Buffer, rows: np.ndarray, count: int) -> list[dict]:
        """Return `gradient_accumulation_steps` batches of a step's chunks, of which this process has `rows` and all have `count`."""
        return [
            self._micro_batch(buffer, part, count)
            for part in np.array_split(rows, self.args.gradient_accumulation_steps)
        ]

    def _micro_batch(self, buffer: Buffer, rows: np.ndarray, count: int) -> dict:
        chunks: list[SampledChunk] = [buffer.chunks[row] for row in rows] or [buffer.spare]
        if self._keep_states:
            inputs = stacked(chunks)
        else:
            inputs = dict(self._policy.model_inputs([chunk.observation for chunk in chunks]))
        ppo = {
            "rows": torch.from_numpy(rows.astype(np.int64)),
            "old_log_prob": torch.from_numpy(buffer.old_log_probs[rows]),
            "advantage": torch.from_numpy(buffer.advantages[rows]),
            "count": torch.tensor(count),
        }
        return {**inputs, "trace": stacked_traces(chunks), "ppo": ppo}

    def _measure_old_log_probs(self, buffer: Buffer, batches: Iterable[dict]) -> None:
        """Compute the log-probabilities that ratios are taken to, by the code and in the batches of the first update."""
        model = self.model_wrapped
        model.train()
        self._frozen.apply(model)
        most = 0.0
        with torch.no_grad():
            for batch in batches:
                rows = batch["ppo"]["rows"].numpy()
                batch = self._prepare_inputs(batch)
                batch.pop("ppo")
                with self.compute_loss_context_manager():
                    log_prob = self._log_probs(model, batch)[: len(rows)].cpu().numpy()
                buffer.old_log_probs[rows] = log_prob
                drawn = np.array([buffer.chunks[row].log_prob for row in rows]) / _transitions(batch["trace"])
                most = max([most, *np.abs(log_prob - drawn).tolist()])
        most = max(gather_object([most]))
        self._logged["actor/collection_log_ratio"] = most
        if most > _MOST_FIRST_LOG_RATIO:
            logger.warning_once(
                f"log-probabilities differ by up to {most:.2g} between collection and learning, before any update: because of bfloat16, "
                "of batches that are padded differently in a policy that attends padding, of another dtype, or of dropout. Ratios are "
                "taken to those of learning"
            )

    def _log_probs(self, model: nn.Module, batch: dict) -> torch.Tensor:
        """Return log-probabilities, as the mean over noisy denoising steps: else the trust region would shrink with their number."""
        return model(**batch, exploration=self.exploration).log_prob.float() / _transitions(batch["trace"])

    def _prepare_inputs(self, inputs: dict) -> dict:
        if "ppo" not in inputs:
            return super()._prepare_inputs(inputs)
        exact = {"trace", "ppo"}  # DeepSpeed's dtype is not for these
        own = {name: {n: x.to(self.args.device) for n, x in inputs[name].items()} for name in exact}
        return super()._prepare_inputs({n: x for n, x in inputs.items() if n not in exact}) | own

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "ppo" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._frozen.apply(model)
        ppo, args = inputs.pop("ppo"), self.ppo_args
        if args.imitation_weight:
            self._imitate(model)
        number = len(ppo["advantage"])
        log_prob = self._log_probs(model, inputs)
        losses, figures = policy_losses(
            log_prob[:number],
            ppo["old_log_prob"],
            ppo["advantage"],
            args.clip_low,
            args.clip_high,
            args.dual_clip or None,
        )
        if ppo.get("is_first", False):
            self._check_first_ratio(log_prob[:number] - ppo["old_log_prob"])
        # The mean over the chunks of all processes and parts: the Trainer divides by the parts, DDP by the processes.
        parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        loss = losses.sum() * (parts / ppo["count"])
        if not number:
            loss = 0.0 * log_prob.sum()  # a part without chunks takes part in the reduction of gradients
        for name, figure in figures.items():
            self._figures[name] = self._figures[name].to(figure.device) + torch.stack(
                [figure.sum(), figure.new_tensor(float(number))]
            )
        kl = figures["approx_kl"]
        self._step_kl = self._step_kl.to(kl.device) + torch.stack([kl.sum(), kl.new_tensor(float(number))])
        self._guard.observe(self, loss)
        self._throughput.clock.start("backward")
        return (loss, {}) if return_outputs else loss

    def _check_first_ratio(self, log_ratio: torch.Tensor) -> None:
        """Check that the parts of the first step have ratios of 1, on all processes at once: else the others would wait forever."""
        most = log_ratio.detach().abs().max() if log_ratio.numel() else log_ratio.new_zeros(())
        most = self.accelerator.gather(most.reshape(1)).max().item()
        self._logged["actor/first_log_ratio"] = max(most, self._logged.get("actor/first_log_ratio", 0.0))
        if most > _MOST_FIRST_LOG_RATIO:
            raise ValueError(
                f"before any update, log-probabilities differ by {most:.2g} from those of a moment ago, so that PPO's ratios are "
                "noise. What a policy of your own computes must depend on its inputs only: look for dropout, noise drawn in "
                "chunk_log_prob, or state that is kept from call to call"
            )

    def _imitate(self, model: nn.Module) -> None:
        """Add the gradient of the imitation loss on the next demonstrations; it is reduced together with PPO's."""
        size, data = self.ppo_args.imitation_batch_size, self._demonstrations
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        seed = [self.args.seed, self.progress["demonstrated"]]
        order = np.random.default_rng(seed).integers(len(data), size=size * processes)
        self.progress["demonstrated"] += 1
        batch = self._collate_demonstrations([data[int(i)] for i in order[process::processes]])
        batch = super()._prepare_inputs(dict(batch))
        alone = contextlib.nullcontext() if self.is_deepspeed_enabled else self.accelerator.no_sync(model)
        with alone:
            loss = model(**batch).loss
            weight = self.ppo_args.imitation_weight / self.current_gradient_accumulation_steps
            self.accelerator.backward(weight * loss)
        self._guard.observe(self, loss)
        one = torch.stack([loss.detach().float(), loss.new_ones(()).float()])
        self._figures["imitation_loss"] = self._figures["imitation_loss"].to(one.device) + one

    def end_iteration(self, done: int) -> None:
        """Count an iteration, and say how far the run is."""
        seconds = time.perf_counter() - self._iteration_began - self._seconds_collecting
        self._logged["seconds/update"] = seconds
        if self.std is not None:
            self._logged["actor/std"] = self.std.mean.item()
        self.progress["iteration"] = done
        self.progress["seconds"] += seconds
        left = self.progress["seconds"] / done * (self.ppo_args.iterations - done)
        counts = f"{self.progress['episodes']:,} episodes, {self.progress['environment_steps']:,} environment steps"
        logger.info(
            f"iteration {done} of {self.ppo_args.iterations}: {self._logged['rollout/success_once']:.0%} of the collected episodes "
            f"solved; {counts} so far; about {left / 60:.0f} min left"
        )

    def end_step(self) -> bool:
        """Return whether the step's divergence, over all processes, ends the iteration."""
        step_kl, self._step_kl = self._step_kl, torch.zeros(2)
        if not self.ppo_args.target_kl:
            return False
        total, number = self._sum(step_kl.to(self.args.device)).tolist()
        return total / max(number, 1.0) > self.ppo_args.target_kl

    # ------------------------------------------------------------------------------------------------- logs and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding what docs/reinforcement_learning.md lists."""
        if "loss" in logs:
            for name, figure in sorted(self._figures.items()):
                total, number = self._sum(figure.to(self.args.device)).tolist()
                logs[f"actor/{name}"] = total / max(number, 1.0)
            self._figures.clear()
            logs |= self._logged
            self._logged = {}
        logs.pop("train_samples_per_second", None)  # transformers counts items of the data, which are no samples here
        super().log(logs, start_time)

    def _init_training_state(self, *args):
        super()._init_training_state(*args)
        self.progress |= self._resumed
        return self.progress["iteration"], 0

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train, or continue a run from a checkpoint, as [`VLATrainer`]; the simulators' processes are the caller's to end."""
        checkpoint = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
        file = None if checkpoint is None else Path(checkpoint, STATE_FILE)
        if file is not None and not file.is_file():
            raise ValueError(
                f"{checkpoint} is not of a run of reinforcement learning: it has no {STATE_FILE}; start from it as policy"
            )
        self._resumed = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def write_policy(self, folder: str) -> None:
        super().write_policy(folder)
        if self.args.should_save:
            for beside in (self.critic and self.critic.critic, self.std):
                if beside is not None:
                    beside.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            Path(output_dir, STATE_FILE).write_text(json.dumps(self.progress), encoding="utf-8")
            for beside in (self.critic, self.std):
                if beside is not None:
                    beside.save_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        for beside in (self.critic, self.std):
            if checkpoint is not None and beside is not None:
                beside.load(checkpoint)

    # ------------------------------------------------------------------------------------------------------------------ parts

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="mean")

    def _check_keep_states(self) -> None:
        model = self._policy.model
        possible = model.reads_backbone_states and not any(p.requires_grad for p in model.backbone_parameters())
        if self._keep_states and not possible:
            raise ValueError(
                "keep_states is for a frozen backbone whose states the head reads: set freeze_modules: ['^vlm'], or leave it out"
            )
        if self._keep_states is None:
            config = model.config
            per_chunk = 4 * (config.vlm_num_layers + 1) * config.vlm_hidden_size * 512  # tokens, roughly
            chunks = 40 * self.ppo_args.episodes_per_iteration
            self._keep_states = possible and per_chunk * chunks < _MOST_STATE_BYTES


class Starts(Sequence):
    """What episodes start from, in this order, with the identity that a resumed run must share."""

    shuffled = False

    def __init__(self, given: Sequence[Mapping[str, Any]], start_policy: str):
        self._given = given
        own = given.identity if hasattr(given, "identity") else {"tasks": sorted({item["task"] for item in given})}
        self.identity = {**own, "start_policy": start_policy}
        self.name = getattr(given, "name", "")

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        item = self._given[number]
        return {"task": item["task"], "seed": int(item["seed"])}


class _Batches:
    """The Trainer's data loader: each time that it is iterated over, an iteration of PPO."""

    def __init__(self, trainer: VLAPPOTrainer):
        self._trainer, self._iteration = trainer, 0
        self.dataset = trainer.train_dataset

    def set_epoch(self, epoch: int) -> None:
        self._iteration = epoch

    def __len__(self) -> int:
        args = self._trainer.ppo_args
        return args.epochs * args.minibatches * self._trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict]:
        return self._trainer.batches_of(self._iteration)


class _Iterations(TrainerCallback):
    """Ends an iteration whose policy has moved far enough; counts iterations; saves and evaluates at the ends of some."""

    def __init__(self, trainer: VLAPPOTrainer):
        self._trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._trainer.std is not None:
            self._trainer.std.step()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = False  # an iteration is logged when it is over
        if self._trainer.end_step():
            control.should_epoch_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        trainer = self._trainer
        done = trainer._batches._iteration + 1
        trainer.end_iteration(done)
        last = done >= trainer.ppo_args.iterations
        state.epoch = float(done)  # also if the iteration was ended early
        control.should_save &= last or done % trainer.ppo_args.save_every == 0
        control.should_evaluate &= last or done % trainer.ppo_args.evaluate_every == 0
        return control

    def on_save(self, args, state, control, **kwargs):
        self._plot(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._plot(args, state)

    def _plot(self, args, state) -> None:
        if state.is_world_process_zero:
            plot_learning(state.log_history, Path(args.output_dir, "learning.png"))


def switch_off_dropout(model: nn.Module) -> str:
    """Set all dropout rates of a policy to 0, in place; return which rates there were, as text, empty if there were none."""
    rates = set()
    for module in model.modules():
        name = "p" if isinstance(module, nn.Dropout) else "attention_dropout"
        rate = getattr(module, name, 0.0)
        if isinstance(rate, float) and rate > 0:
            rates.add(rate)
            setattr(module, name, 0.0)
    return ", ".join(f"{rate:g}" for rate in sorted(rates))


def _transitions(trace: Mapping[str, torch.Tensor]) -> int:
    """Return how many noisy denoising steps a trace has; 1 of policies that do not explore so."""
    return trace["before"].shape[1] if "before" in trace else 1


def _exploration(model, args: PPOArguments, seed: int) -> Exploration:
    names = ("noisy_steps", "noise_level", "noise_correlation", "std", "temperature", "num_inference_steps")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    learned = {"learned_std"} if args.learned_std else set()
    if foreign := sorted((set(given) | learned) - model.exploration_settings):
        raise ValueError(
            f"{type(model).__name__} does not explore by {', '.join(foreign)}, only by {', '.join(sorted(model.exploration_settings))}"
        )
    if learned:
        steps = args.num_inference_steps
        with torch.random.fork_rng(devices=[]):  # the Trainer seeds later
            torch.manual_seed(seed)
            given["learned_std"] = model.new_learned_std(**({} if steps is None else {"num_steps": steps}))
    if "executed_steps" in model.exploration_settings:
        given["executed_steps"] = args.execute_steps
    if args.execute_steps > model.config.action_horizon:
        raise ValueError(
            f"execute_steps is {args.execute_steps}; a chunk of this policy has {model.config.action_horizon} actions"
        )
    return Exploration(**given)


def _check_arguments(args, ppo_args: PPOArguments, train_dataset, demonstrations) -> None:
    if not isinstance(args, VLATrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}; give VLATrainingArguments(output_dir=…)")
    if not len(train_dataset):
        raise ValueError("train_dataset is empty; give what episodes start from, {'task': …, 'seed': …} each")
    if args.max_steps > 0:
        raise ValueError(f"max_steps is {args.max_steps}; how long a policy learns by acting is said by iterations")
    for name, kinds, possible in (
        ("save_strategy", SaveStrategy, ("no", "epoch")),
        ("eval_strategy", IntervalStrategy, ("no", "epoch")),
    ):
        value = kinds(getattr(args, name)).value
        if value not in possible:
            raise ValueError(
                f"{name} is {value!r}; possible: {', '.join(possible)}: an iteration, which is an epoch here, is whole or not at all"
            )
    if ppo_args.episodes_per_iteration < args.world_size:
        raise ValueError(
            f"episodes_per_iteration is {ppo_args.episodes_per_iteration}, fewer than the {args.world_size} processes"
        )
    if ppo_args.imitation_weight and demonstrations is None:
        raise ValueError("imitation_weight weighs the loss on demonstrations, and there are none: give some")
    if demonstrations is not None and not ppo_args.imitation_weight:
        raise ValueError("demonstrations are given, and imitation_weight is 0: set it, or leave them out")


__all__ = ["VLAPPOTrainer"]
