"""PPO's formulas by hand, and a bandit learned through the trainer: one process and two, killed and resumed, bad input."""

import copy
import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_policies import build
from toy import InThisProcess, ToyBandit

from hf_vla import VLATrainingArguments
from hf_vla.evaluation.collection import CollectedChunk, CollectedEpisode, Collector, Context
from hf_vla.inference.policy import Policy
from hf_vla.modeling.critic import Critic
from hf_vla.training.critic_fitting import CriticFitting
from hf_vla.training.ppo import (
    explained_variance,
    generalized_advantages,
    group_advantages,
    policy_losses,
    value_losses,
)
from hf_vla.training.ppo_buffer import Buffer, EpisodeFacts, chunk_rewards
from hf_vla.training.ppo_trainer import Starts, VLAPPOTrainer
from hf_vla.training.run_identity import check_same_run, describe_run
from hf_vla.training.run_log import read_summary
from hf_vla.training_args.ppo_arguments import CollectionArguments, PPOArguments


class TestFormulas:
    def test_generalized_advantages(self):
        """Two chunks, success in the second: by hand with gamma 0.9, lambda 0.5."""
        advantages, returns = generalized_advantages([0, 1], [0.2, 0.6], 0.9, 0.5)
        last = 1 - 0.6
        first = 0.9 * 0.6 - 0.2 + 0.9 * 0.5 * last
        assert advantages == pytest.approx([first, last]) and returns == pytest.approx([first + 0.2, 1.0])

    def test_the_time_limit_is_an_end_of_value_0(self):
        advantages, _ = generalized_advantages([0.0], [0.7], 0.99, 0.95)
        assert advantages == pytest.approx([-0.7])

    def test_groups(self):
        assert group_advantages([1, 0, 0, 1], "rloo") == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
        assert group_advantages([1, 0, 0, 0], "grpo") == pytest.approx(
            [x / math.sqrt(3 / 16) for x in (0.75, -0.25, -0.25, -0.25)], rel=1e-5
        )
        with pytest.raises(ValueError, match="nothing to compare"):
            group_advantages([1], "rloo")

    def test_clips(self):
        """Ratios 1.5, 0.5, 1.5, 0.5, 6 with advantages of both signs; clip 0.8 to 1.28, dual clip 3."""
        ratios, advantages = torch.tensor([1.5, 0.5, 1.5, 0.5, 6.0]), torch.tensor([1.0, 1.0, -1.0, -1.0, -2.0])
        losses, figures = policy_losses(ratios.log(), torch.zeros(5), advantages, 0.2, 0.28, 3.0)
        assert losses.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8, 6.0])
        assert figures["clip_fraction"].tolist() == [1, 0, 0, 1, 0]
        assert figures["dual_clip_fraction"].tolist() == [0, 0, 0, 0, 1]
        assert policy_losses(ratios.log(), torch.zeros(5), advantages, 0.2, 0.28, None)[0][-1] == pytest.approx(12.0)
        kl = [r - 1 - math.log(r) for r in ratios.tolist()]
        assert figures["approx_kl"].tolist() == pytest.approx(kl, rel=1e-5)

    def test_a_ratio_without_bounds_stays_finite(self):
        losses, _ = policy_losses(torch.tensor([500.0]), torch.zeros(1), -torch.ones(1), 0.2, 0.2, None)
        assert losses.isfinite().all()

    def test_values_are_clipped(self):
        values, old, returns = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.0])
        losses, clipped = value_losses(values, old, returns, 0.2)
        assert losses.tolist() == pytest.approx([0.3**2 / 2, 0.9**2 / 2]) and clipped.tolist() == [1, 0]

    def test_explained_variance(self):
        returns = np.array([0.0, 1.0, 1.0])
        assert explained_variance(returns, returns) == 1 and explained_variance(np.zeros(3), returns) == 0
        assert explained_variance(np.ones(3), np.ones(3)) == 0


def episode(successes, rewards=None):
    chunks = [CollectedChunk(f"chunk {i}", (0.5, 0.5), s) for i, s in enumerate(successes)]
    return CollectedEpisode(Context("near", 0), chunks)


class TestBuffer:
    def test_only_the_first_success_counts(self):
        assert chunk_rewards(episode([False, True, True]), PPOArguments()) == [0, 1, 0]
        dense = PPOArguments(reward="dense", reward_scale=0.1)
        assert chunk_rewards(episode([False, True]), dense) == pytest.approx([0.1, 1.1])
        waiting_costs = PPOArguments(reward="dense", reward_scale=0.1, reward_offset=-2)
        assert chunk_rewards(episode([False, True]), waiting_costs) == pytest.approx([-0.3, 0.7])

    def test_groups_without_difference_are_dropped(self):
        args = PPOArguments(advantage="rloo", group_size=2, episodes_per_iteration=6)
        outcomes = [True, True, True, False, False, False]
        episodes = {i: episode([False, s]) for i, s in enumerate(outcomes)}
        facts = [EpisodeFacts(i, s, 4, float(s), 2) for i, s in enumerate(outcomes)]
        buffer = Buffer(episodes, facts, args)
        buffer.compare_groups()
        assert buffer.kept == {2, 3} and buffer.total == 4
        assert buffer.advantages.tolist() == [1, 1, -1, -1]

    def test_steps_have_the_same_chunks_however_many_processes_there_are(self):
        args = PPOArguments(episodes_per_iteration=6)
        lengths = [1, 4, 2, 3, 5, 2]
        episodes = {i: episode([False] * n) for i, n in enumerate(lengths)}
        for i, one in episodes.items():
            one.chunks = [c._replace(sample=(i, t)) for t, c in enumerate(one.chunks)]
        facts = [EpisodeFacts(i, False, n, 0.0, n) for i, n in enumerate(lengths)]
        whole = Buffer(episodes, facts, args)
        halves = [Buffer({i: e for i, e in episodes.items() if i % 2 == p}, facts, args) for p in (0, 1)]
        seen = []
        for number, (rows, count) in enumerate(whole.parts(4, [0, 1])):
            one = {whole.chunks[row] for row in rows}
            of_halves = [half.parts(4, [0, 1])[number] for half in halves]
            other = {half.chunks[row] for half, (rows, _) in zip(halves, of_halves, strict=True) for row in rows}
            assert one == other and count == len(one) == of_halves[0][1] == of_halves[1][1]
            seen += one
        assert len(seen) == len(set(seen)) == sum(lengths)

    def test_a_new_critic_starts_from_the_mean_discounted_return(self):
        args = PPOArguments(gamma=0.9, gae_lambda=0.5)
        episodes = {0: episode([False, False, True]), 1: episode([False])}
        facts = [EpisodeFacts(i, one.success, one.length, 0.0, len(one.chunks)) for i, one in episodes.items()]
        critic = Critic(4)
        fitting = CriticFitting(critic, args, reduce=lambda x: x)
        fitting.start(Buffer(episodes, facts, args))
        assert critic.of_observations(torch.randn(3, 4)).tolist() == pytest.approx([(0.81 + 0.9 + 1 + 0) / 4] * 3)
        fitting.start(Buffer({0: episodes[1]}, facts[1:], args))  # only once
        assert critic.of_observations(torch.randn(1, 4)).item() == pytest.approx(2.71 / 4)


@pytest.fixture(scope="module")
def collect():
    tasks = {"near": ToyBandit, "impossible": functools.partial(ToyBandit, tolerance=0.0)}
    tasks["twice"] = functools.partial(ToyBandit, chunks=2)
    with Collector(tasks, environments_per_worker=16, execute_steps=3) as collector:
        yield collector


def make(
    folder, collect, framework="qwen_pi_v3", *, policy=None, training=None, task="near", demonstrations=None, **changes
):
    policy = copy.deepcopy(policy or build(framework))
    settings = {
        "learning_rate": 3e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    settings |= {"freeze_modules": ["^vlm"], "lr_scheduler_type": "constant", "weight_decay": 0.0, **(training or {})}
    ppo = {"iterations": 6, "episodes_per_iteration": 32, "epochs": 2, "minibatches": 2, "execute_steps": 3}
    ppo |= {"reward": "dense", "reward_scale": 1.0, "critic_warmup_iterations": 0, "target_kl": 0.0, **changes}
    return VLAPPOTrainer(
        policy.model,
        VLATrainingArguments(output_dir=str(folder), **settings),
        PPOArguments(**ppo),
        train_dataset=[{"task": task, "seed": seed} for seed in range(1000)],
        collect=collect,
        demonstrations=demonstrations,
        processing_class=policy.processor,
    )


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_a_bandit_is_learned(tmp_path, collect, advantage):
    """A policy that stays as it is returns less than -2, one that runs to the arm's limit -1.5; 1 of the return is for success."""
    training = {"learning_rate": 1.5e-4}
    trainer = make(tmp_path, collect, "qwen_oft", advantage=advantage, iterations=8, std=0.15, training=training)
    trainer.train()
    returns = logged(trainer, "rollout/return")
    assert returns[0] < -2 and returns[-1] > -0.8, returns
    assert max(logged(trainer, "actor/first_log_ratio")) < 1e-4
    assert max(logged(trainer, "actor/collection_log_ratio")) < 1e-4
    assert trainer.progress["episodes"] == 256 and trainer.progress["environment_steps"] == 768
    assert (tmp_path / "learning.png").is_file()
    if advantage == "gae":
        assert logged(trainer, "critic/mean_value")[0] == pytest.approx(returns[0], abs=1e-3)
        trainer.save_model()
        assert (tmp_path / "critic.safetensors").is_file() and (tmp_path / "config.json").is_file()
    for name in (
        "actor/approx_kl",
        "actor/clip_fraction",
        "actor/ratio",
        "adv/max",
        "seconds/collection",
        "grad_norm",
        "samples_per_second",
        "time/backward",
        "peak_memory_gib",
    ):
        assert len(logged(trainer, name)) == 8, name


@pytest.mark.parametrize("framework", ["qwen_oft", "qwen_fast", "qwen_discrete_diffusion"])
def test_other_frameworks_take_a_step(tmp_path, collect, framework):
    freeze = None if framework in ("qwen_fast",) else ["^vlm"]
    trainer = make(
        tmp_path, collect, framework, iterations=1, episodes_per_iteration=8, training={"freeze_modules": freeze}
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert max(logged(trainer, "actor/first_log_ratio")) < 1e-3
    assert trainer._keep_states == (framework != "qwen_fast")


def test_noise_is_learned_with_the_policy(tmp_path):
    """Of a policy that regresses the best action already and stays as it is, less noise in the action that counts is better."""
    policy = build("qwen_oft")
    (chunk,) = Policy(policy.model, policy.processor).infer([ToyBandit().reset(0)])

    class Solved(ToyBandit):
        best = float(chunk[:, 0].mean())

    def trained(folder, iterations, resume=None):
        with Collector({"near": Solved}, num_workers=0, workers=[InThisProcess(Solved)], execute_steps=3) as collect:
            training = {"learning_rate": 0.0, "save_strategy": "epoch", "save_total_limit": 1}
            changes = {"advantage": "grpo", "iterations": iterations, "learned_std": True}
            changes |= {"learned_std_learning_rate": 0.1}
            trainer = make(folder, collect, "qwen_oft", training=training, **changes)
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained(tmp_path / "whole", 4)
    of_counting, of_other = whole.exploration.learned_std()[0, 0].tolist()
    assert of_counting < 0.1 and of_counting < of_other, "both were 0.113"
    assert logged(whole, "actor/std")[-1] == pytest.approx((of_counting + of_other) / 2, rel=0.05)
    assert max(logged(whole, "actor/first_log_ratio")) < 1e-4
    trained(tmp_path / "cut", 2)
    again = trained(tmp_path / "cut", 4, resume=True)
    torch.testing.assert_close(again.exploration.learned_std.z, whole.exploration.learned_std.z, rtol=1e-4, atol=1e-5)
    again.save_model()
    saved = load_file(tmp_path / "cut" / "learned_std.safetensors")
    assert torch.equal(saved["z"], again.exploration.learned_std.z)
    assert not any("std" in name for name in load_file(tmp_path / "cut" / "model.safetensors"))


@pytest.mark.parametrize("noisy_steps", ["last", "all", "one"])
def test_learned_noise_of_denoising_steps(tmp_path, noisy_steps):
    with Collector({"near": ToyBandit}, num_workers=0, workers=[InThisProcess(ToyBandit)], execute_steps=3) as collect:
        changes = {"learned_std": True, "noisy_steps": noisy_steps, "num_inference_steps": 3, "epochs": 1}
        trainer = make(tmp_path, collect, iterations=1, episodes_per_iteration=8, **changes)
        trainer.train()
    learned = trainer.exploration.learned_std
    moved = learned.z.detach().abs().amax(dim=1) > 0
    assert moved.tolist() == ([False, False, True] if noisy_steps == "last" else [True, True, True])
    assert learned.of_features[-1].weight.abs().max() > 0
    assert max(logged(trainer, "actor/first_log_ratio")) < 1e-4
    assert 0.08 < logged(trainer, "actor/std")[0] < 0.16


def test_images_or_kept_states_give_the_same_update(tmp_path, collect):
    found = []
    for keep in (True, False):
        trainer = make(
            tmp_path, collect, iterations=1, keep_states=keep, training={"gradient_accumulation_steps": 1 + keep}
        )
        trainer.train()
        found.append((logged(trainer, "grad_norm")[-1], trainer.model.action_head.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for name, x in found[0][1].items():
        torch.testing.assert_close(x, found[1][1][name], rtol=1e-3, atol=5e-5)  # of steps of 3e-3


def test_a_learning_rate_of_0_changes_nothing(tmp_path, collect):
    trainer = make(tmp_path, collect, iterations=2, training={"learning_rate": 0.0})
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_divergence_ends_an_iteration(tmp_path, collect):
    trainer = make(tmp_path, collect, iterations=2, epochs=10, target_kl=1e-3, training={"save_strategy": "epoch"})
    trainer.train()
    assert trainer.state.global_step < 40 and trainer.state.epoch == 2
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_demonstrations_are_imitated_meanwhile(tmp_path, collect):
    """No episode is solved, so that all advantages are 0: only the demonstrations teach."""
    shown = {
        "image": [ToyBandit().render(64)],
        "lang": ToyBandit.instruction,
        "state": np.array([[0.5, 3.0]], np.float32),
    }
    shown |= {"action": np.full((3, 2), [2.5, 3.0], np.float32), "dataset": "arm"}
    changes = {"reward": "sparse", "imitation_weight": 1.0, "imitation_batch_size": 2, "episodes_per_iteration": 4}
    changes |= {"iterations": 4, "training": {"learning_rate": 5e-4}}
    trainer = make(tmp_path, collect, "qwen_oft", task="impossible", demonstrations=[shown], **changes)
    trainer.train()
    losses = logged(trainer, "actor/imitation_loss")
    assert len(losses) == 4 and losses[-1] < losses[0] / 2, losses
    assert trainer.progress["demonstrated"] == trainer.state.global_step


def test_a_resumed_run_is_the_same(tmp_path, collect):
    """Stopped within its third iteration, the run repeats it from its start."""
    whole = make(tmp_path / "whole", collect, iterations=3, training={"save_strategy": "epoch"})
    whole.train()
    cut = make(tmp_path / "cut", collect, iterations=3, training={"save_strategy": "epoch"})
    original, calls = cut.compute_loss, []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 10:  # the second step of the third iteration
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    cut.compute_loss = stops
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = make(tmp_path / "cut", collect, iterations=3, training={"save_strategy": "epoch"})
    again.train(resume_from_checkpoint=True)
    assert again.progress["episodes"] == 96 and again.state.global_step == 12
    for name in ("rollout/return", "grad_norm", "critic/value_loss"):
        assert logged(again, name) == pytest.approx(logged(whole, name), rel=1e-4), name
    for name, x in whole.model.action_head.state_dict().items():
        torch.testing.assert_close(again.model.action_head.state_dict()[name], x, rtol=1e-4, atol=1e-6)


def test_a_run_resumes_with_its_own_policy_and_task_only(tmp_path, collect):
    make(tmp_path, collect, iterations=1, training={"save_strategy": "epoch"}).train()
    with pytest.raises(ValueError, match=r'data\.tasks\[0\] is "near" in the checkpoint, "impossible" now'):
        make(tmp_path, collect, iterations=2, task="impossible", training={"save_strategy": "epoch"}).train(True)
    other = copy.deepcopy(build("qwen_pi_v3"))
    next(other.model.action_head.parameters()).data.add_(0.5)
    trainer = make(tmp_path, collect, iterations=2, policy=other, training={"save_strategy": "epoch"})
    with pytest.raises(ValueError, match="belongs to another run: data.start_policy is"):
        trainer.train(resume_from_checkpoint=True)
    state = json.loads((tmp_path / "checkpoint-4" / "rl_state.json").read_text())
    assert state["iteration"] == 1 and state["episodes"] == 32


def test_a_run_resumes_with_other_processes_and_accumulation(tmp_path, collect):
    make(tmp_path, collect, iterations=1, training={"save_strategy": "epoch"}).train()
    trainer = make(
        tmp_path, collect, iterations=2, training={"save_strategy": "epoch", "gradient_accumulation_steps": 2}
    )
    run = describe_run(trainer)
    run["processes"]["world_size"] = 2
    check_same_run(tmp_path / "checkpoint-4", run)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.progress["iteration"] == 2 and trainer.state.global_step == 8


def test_the_time_of_the_critic_is_part_of_the_update(tmp_path, collect, monkeypatch):
    trainer = make(tmp_path, collect, iterations=1, episodes_per_iteration=4, critic_warmup_iterations=1)
    fit = trainer.critic.fit
    monkeypatch.setattr(trainer.critic, "fit", lambda *args: (time.sleep(0.5), fit(*args))[1])
    trainer.train()
    assert logged(trainer, "seconds/update")[0] > 1
    assert trainer.progress["seconds"] == pytest.approx(
        logged(trainer, "seconds/update")[0] + logged(trainer, "seconds/collection")[0]
    )


def test_the_first_ratio_is_that_of_all_parts_and_processes(tmp_path, collect, monkeypatch):
    trainer = make(tmp_path, collect)
    trainer._check_first_ratio(torch.tensor([1e-4, -5e-4]))
    trainer._check_first_ratio(torch.zeros(0))  # a part without chunks
    assert trainer._logged["actor/first_log_ratio"] == pytest.approx(5e-4)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda x: torch.cat([x, torch.tensor([0.5])]))
    with pytest.raises(ValueError, match="before any update, log-probabilities differ by 0.5"):
        trainer._check_first_ratio(torch.zeros(2))


def test_starts_end():
    starts = Starts([{"task": "near", "seed": 3}], "policy")
    assert starts[0] == {"task": "near", "seed": 3}
    with pytest.raises(IndexError):
        starts[1]


def test_groups_of_one_outcome_only_are_an_error(tmp_path, collect):
    changes = {"advantage": "rloo", "reward": "sparse", "episodes_per_iteration": 8}
    trainer = make(tmp_path, collect, task="impossible", **changes)
    with pytest.raises(ValueError, match="5 collections of groups, and in each all episodes had the same return"):
        trainer.train()


def test_dropout_is_switched_off_and_said(tmp_path, collect, caplog):
    policy = copy.deepcopy(build("qwen_pi_v3"))
    policy.model.action_head.dropping = torch.nn.Dropout(0.2)
    trainer = make(tmp_path, collect, policy=policy, iterations=1, episodes_per_iteration=4)
    assert policy.model.action_head.dropping.p == 0.2 and trainer.model.action_head.dropping.p == 0
    assert "dropout (0.2) is off while the policy learns by acting" in caplog.text
    trainer.train()


@pytest.mark.parametrize(
    "changes, training, message",
    [
        ({}, {"max_steps": 10}, "max_steps is 10; how long"),
        ({}, {"save_strategy": "steps"}, "save_strategy is 'steps'; possible: no, epoch"),
        ({"execute_steps": 4}, {}, "execute_steps is 4; a chunk of this policy has 3 actions"),
        ({"temperature": 0.5}, {}, "does not explore by temperature, only by"),
        ({"learned_std": True, "noise_level": 0.5}, {}, "learned_std replaces noise_level; give one of them"),
        ({"learned_std": True}, {"fp16": True}, "learned_std is set, and fp16"),
        ({"imitation_weight": 0.1}, {}, "weighs the loss on demonstrations, and there are none"),
        ({"keep_states": True}, {"freeze_modules": None}, "keep_states is for a frozen backbone"),
    ],
)
def test_contradicting_settings(tmp_path, collect, changes, training, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, collect, training=training, **changes)


@pytest.mark.parametrize(
    "cls, changes, message",
    [
        (PPOArguments, {"iterations": 0}, "iterations is 0; it must be a whole number, at least 1"),
        (PPOArguments, {"gamma": 1.5}, "gamma is 1.5; it must be a number, above 0, at most 1"),
        (PPOArguments, {"sampling_batch_size": 0}, "sampling_batch_size is 0; it must be a whole number, at least 1"),
        (
            CollectionArguments,
            {"tasks": ["a"], "test_seed": -1},
            "test_seed is -1; it must be a whole number, at least 0",
        ),
        (PPOArguments, {"advantage": "ppo"}, "advantage is 'ppo'; possible: gae, rloo, grpo"),
        (PPOArguments, {"advantage": "rloo", "group_size": 5}, "not a multiple of group_size, 5"),
        (CollectionArguments, {}, "tasks is not set"),
        (CollectionArguments, {"tasks": ["a"], "num_workers": 0}, "num_workers is 0 and there are no collectors"),
    ],
)
def test_wrong_arguments(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**changes)


def one_run(folder, collect) -> None:
    """Two iterations with a critic, learned noise, all parameters, and uneven shares of two processes: 5 episodes.

    By gradient descent: Adam would make steps of the rounding errors that are the gradients of keys' biases. The critic's optimizer
    is Adam, so its first gradient must not be 0, as it were if it learned the returns whose mean it starts from: hence gae_lambda.
    """
    training = {"freeze_modules": None, "save_strategy": "epoch", "gradient_accumulation_steps": 2}
    training |= {"optim": "sgd", "learning_rate": 0.1}
    changes = {"iterations": 2, "episodes_per_iteration": 5, "epochs": 1, "gae_lambda": 0.5, "learned_std": True}
    trainer = make(folder, collect, task="twice", training=training, **changes)
    trainer.train()
    trainer.save_model()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, collect):
    folder = tmp_path_factory.mktemp("alone")
    one_run(folder, collect)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(tmp_path, alone, engine):
    from test_engines import environment

    options = {"folder": str(tmp_path), "environment": environment("fsdp2") if engine == "fsdp2" else {}}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("ppo_worker.py")), json.dumps(options)]
    given = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert result.returncode == 0, result.stderr[-6000:]
    expected, found = (read_summary(folder / "summary.jsonl") for folder in (alone, tmp_path))
    names = ("rollout/return", "rollout/episodes", "grad_norm", "actor/approx_kl", "critic/value_loss", "adv/max")
    assert [row["step"] for row in expected] == [row["step"] for row in found] == [2, 4, 4]
    for one, other in zip(expected[:2], found[:2], strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), (one["step"], name)
    start = build("qwen_pi_v3").model.state_dict()
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path))
    moved, apart = (
        math.sqrt(sum((x - other[name]).double().square().sum().item() for name, x in expected.items()))
        for other in (start, found)
    )
    assert moved > 0.05 and apart < 1e-3 * moved, (moved, apart)
    for file in ("critic.safetensors", "learned_std.safetensors"):
        expected, found = (load_file(folder / file) for folder in (alone, tmp_path))
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, rtol=1e-3, atol=1e-4, msg=f"{name} of {file}")
