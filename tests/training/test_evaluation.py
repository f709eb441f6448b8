"""Evaluation while training: held-out data, open-loop error, closed loop, the best policy kept."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.data import LeRobotDataset
from hf_vla.inference.policy import Policy
from hf_vla.training.held_out import EvaluationFrames, HoldOut
from hf_vla.training.run_log import read_summary
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.evaluation_arguments import EvaluationArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build

EVALUATED = ["--eval_episodes", "1", "--eval_strategy", "steps", "--eval_steps", "2"]


def trainer_for(recipe, *flags, closed_loop=None) -> VLATrainer:
    types = (PolicyArguments, DataArguments, EvaluationArguments, VLATrainingArguments)
    (policy, data, evaluation, args), _ = parse_dataclasses(types, [str(recipe), *map(str, flags)])
    hold_out = HoldOut(evaluation)
    model, processor, dataset = build(policy, data, args.seed, hold_out)
    held_out = hold_out.frames(dataset, data.columns)
    return VLATrainer(
        model, args, train_dataset=dataset, eval_dataset=held_out, processing_class=processor, closed_loop=closed_loop
    )


def logged(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


# ------------------------------------------------------------------------- data


def test_held_out_episodes_are_neither_trained_on_nor_counted(dataset):
    whole = LeRobotDataset(dataset, 4)
    hold_out = HoldOut(EvaluationArguments(eval_episodes=0.5, eval_split="last"))
    kept = hold_out(whole)
    assert (kept.episode_indices, hold_out.held_out[0].episode_indices) == ([0], [1])
    assert len(kept) + len(hold_out.held_out[0]) == len(whole)
    alone = LeRobotDataset(dataset, 4, episodes=[0])
    assert kept.statistics == alone.statistics and kept.statistics["num_trajectories"] == 1
    frames = hold_out.frames(None)
    for i in (0, 5, 11):
        item, expected = frames[i], whole[12 + i]
        assert item["lang"] == expected["lang"] and (item["action"] == expected["action"]).all()
        assert (np.asarray(item["image"][0]) == np.asarray(expected["image"][0])).all()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_held_out_tables_are_read_before_training(dataset, tmp_path, on_error):
    root = shutil.copytree(dataset, tmp_path / "data")
    file = next(root.glob("data/**/*.parquet"))
    table = pq.read_table(file)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[15, 1] = np.nan  # of episode 1, frame 3
    column = pa.array(list(actions), table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)

    def training(**evaluation):
        hold_out = HoldOut(EvaluationArguments(eval_split="last", **evaluation))
        mixture = DataArguments(dataset=[str(root)], on_error=on_error).build(4, 0, hold_out)
        return mixture, hold_out.frames(mixture)

    if on_error == "raise":
        mixture, held_out = training(eval_episodes=1)
        mixture.check()
        with pytest.raises(ValueError, match=r"episode 1, frame 3: action\[1\] is nan"):
            held_out.check()
    else:
        with pytest.raises(ValueError, match="eval_episodes is 1, but .* has 1 episodes"):
            training(eval_episodes=1)
        mixture, held_out = training(eval_dataset=[str(root)])
        held_out.check()
        assert mixture.datasets[0].episode_indices == [0] and len(held_out) == 12
        assert all(np.isfinite(held_out[index]["action"]).all() for index in range(len(held_out)))


def test_the_random_choice_follows_its_own_seed(dataset):
    whole = LeRobotDataset(dataset, 4)
    chosen = {seed: HoldOut(EvaluationArguments(eval_episodes=1, eval_split_seed=seed)) for seed in range(6)}
    kept = {seed: hold_out(whole).episode_indices for seed, hold_out in chosen.items()}
    assert {tuple(episodes) for episodes in kept.values()} == {(0,), (1,)}
    again = HoldOut(EvaluationArguments(eval_episodes=1, eval_split_seed=3))
    assert again(whole).episode_indices == kept[3]


def test_some_frames_are_spread_evenly_over_all_datasets(dataset):
    whole = LeRobotDataset(dataset, 4)
    frames = EvaluationFrames([whole, whole], samples=4)
    assert frames.indices.tolist() == [0, 16, 31, 47] and frames.keys == ["tiny_arm"]
    assert [frames[i]["lang"] for i in range(4)] == [whole[i]["lang"] for i in (0, 16, 7, 23)]
    assert len(EvaluationFrames([whole], samples=1000)) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_episodes": 1.5}, "a fraction between 0 and 1"),
        ({"eval_episodes": 0}, "a fraction between 0 and 1"),
        ({"eval_split": "first"}, "possible: random, last"),
        ({"eval_env": "toy"}, "needs both"),
        ({"eval_execute_steps": 3}, "belong to eval_env"),
        ({"eval_samples": 3}, "neither is set"),
        ({"eval_episodes": 1, "eval_samples": 0}, "at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationArguments(**settings)


def test_something_to_evaluate_on_goes_with_a_time_to_do_it(dataset):
    with pytest.raises(ValueError, match="set eval_strategy: steps"):
        EvaluationArguments(eval_episodes=1).check_strategy("no")
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        EvaluationArguments().check_strategy("steps")
    with pytest.raises(ValueError, match="leaves none to train on"):
        HoldOut(EvaluationArguments(eval_episodes=2))(LeRobotDataset(dataset, 4))


# -------------------------------------------------------------------- open loop


def test_open_loop_error_is_that_of_the_saved_policy_frame_by_frame(recipe):
    """Against predictions made one by one, un-normalised by hand: padding left out, every dimension under its name."""
    trainer = trainer_for(recipe, *EVALUATED, "--per_device_eval_batch_size", 5)
    metrics = trainer.evaluate()
    processor, model, held_out = trainer.processing_class, trainer.model, trainer.eval_dataset
    low, high = (np.array(processor.statistics["tiny_arm"]["action"][name]) for name in ("q01", "q99"))
    robot, normalised = [], []
    for i in range(len(held_out)):
        item = held_out[i]
        inputs = processor(item["image"], item["lang"], state=item["state"][None], unnorm_key="tiny_arm")
        noise = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(i))
        predicted = model.predict_action(**inputs, noise=noise)[0].numpy()
        real = item["action_mask"]
        robot.append((np.abs((predicted + 1) / 2 * (high - low) + low - item["action"]))[real])
        target = np.clip(2 * (item["action"] - low) / (high - low) - 1, -2.2, 2.2)
        normalised.append(np.abs(predicted - target)[real])
    robot, normalised = np.concatenate(robot), np.concatenate(normalised)
    assert len(robot) == 12 * 4 - (3 + 2 + 1)
    assert metrics["eval_action_error/tiny_arm/dx"] == pytest.approx(robot[:, 0].mean(), rel=1e-4)
    assert metrics["eval_action_error/tiny_arm/dy"] == pytest.approx(robot[:, 1].mean(), rel=1e-4)
    assert metrics["eval_action_error"] == pytest.approx(normalised.mean(), rel=1e-4)
    assert math.isfinite(metrics["eval_loss"]) and all(isinstance(value, int | float) for value in metrics.values())


def test_the_figure_depends_on_the_policy_alone_and_training_not_on_it(recipe):
    """Twice the same, in batches of any size; and a run with evaluations ends with the weights of one without."""
    plain = trainer_for(recipe, "--eval_episodes", "1", "--eval_split_seed", 1)
    plain.train()
    evaluated = trainer_for(recipe, *EVALUATED, "--eval_split_seed", 1)
    evaluated.train()
    assert len(logged(evaluated, "eval_action_error")) == 3
    for ours, theirs in zip(evaluated.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    first = evaluated.evaluate()
    assert first["eval_action_error"] == logged(evaluated, "eval_action_error")[2]
    assert first["eval_loss"] == logged(evaluated, "eval_loss")[2]
    evaluated.args.per_device_eval_batch_size = 5
    assert evaluated.evaluate()["eval_action_error"] == pytest.approx(first["eval_action_error"], rel=1e-5)


def test_another_dataset_takes_the_training_data_s_statistics(recipe, dataset):
    flags = ["--eval_dataset", dataset, "--eval_strategy", "steps", "--eval_steps", "3", "--eval_samples", "6"]
    trainer = trainer_for(recipe, *flags)
    assert len(trainer.eval_dataset) == 6 and len(trainer.train_dataset.datasets[0]) == 24
    assert trainer.evaluate()["eval_action_error/tiny_arm/dy"] > 0


def test_a_fast_policy_that_cannot_be_decoded_yet_does_not_end_the_run(recipe):
    settings = yaml.safe_load(recipe.read_text())
    settings |= {"framework": "qwen_fast", "policy_config": {"action_horizon": 4, "generation_constraint": None}}
    recipe.write_text(yaml.safe_dump(settings))
    trainer = trainer_for(recipe, *EVALUATED, "--eval_samples", "2")
    assert trainer.evaluate()["eval_action_error"] > 0
    assert trainer.model.config.zeros_if_undecodable is False


# ------------------------------------------------------------------ closed loop


class Expert:
    """Stands for a policy that has learned its task by step 4, and forgets it after."""

    def __init__(self):
        self.calls = 0
        self.metric_names = ["success", "success/reach"]

    def __call__(self, model, processor):
        assert not model.training and not torch.is_grad_enabled()
        torch.randn(3), np.random.rand(3)
        self.calls += 1
        rate = [0.1, 0.9, 0.5][self.calls - 1]
        return {"success": rate, "success/reach": rate}


def test_success_is_logged_and_the_best_policy_kept(recipe, tmp_path):
    flags = ["--eval_strategy", "steps", "--eval_steps", "2", "--metric_for_best_model", "eval_success"]
    trainer = trainer_for(recipe, *flags, closed_loop=Expert())
    weights = {}
    save = trainer.save_model
    trainer.save_model = lambda *a, **k: (weights.update({trainer.state.global_step: copies(trainer)}), save(*a, **k))
    trainer.train()
    assert logged(trainer, "eval_success/reach") == logged(trainer, "eval_success") == [0.1, 0.9, 0.5]
    best = tmp_path / "policy" / "best"
    about = json.loads((best / "evaluation.json").read_text())
    assert (about["step"], about["metric"], about["metrics"]["eval_success"]) == (4, "eval_success", 0.9)
    policy = Policy.from_pretrained(str(best), device="cpu")
    assert all(torch.equal(p, weights[4][name]) for name, p in policy.model.named_parameters())
    assert not any(
        torch.equal(p, trainer.model.get_parameter(name))
        for name, p in policy.model.named_parameters()
        if name == "action_head.action_encoder.layer1.weight"
    )
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["best", "loss.png", "summary.jsonl"]


def copies(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_load_best_model_at_end_gives_the_best_of_all_checkpoints(recipe, tmp_path):
    flags = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--save_total_limit", "1", "--metric_for_best_model", "success", "--load_best_model_at_end", "true"]
    trainer = trainer_for(recipe, *flags, closed_loop=Expert())
    trainer.train()
    output = tmp_path / "policy"
    best = Policy.from_pretrained(str(output / "checkpoint-4"), device="cpu").model
    assert all(torch.equal(p, trainer.model.get_parameter(name)) for name, p in best.named_parameters())
    assert trainer.state.best_metric == 0.9 and not (output / "best").exists()


def test_action_error_is_better_the_smaller_it_is(recipe, tmp_path):
    args = VLATrainingArguments(str(tmp_path), metric_for_best_model="eval_action_error", use_cpu=True)
    assert args.greater_is_better is False
    args = VLATrainingArguments(str(tmp_path), metric_for_best_model="success/reach", use_cpu=True)
    assert args.greater_is_better is True
    trainer = trainer_for(recipe, *EVALUATED, "--metric_for_best_model", "action_error", "--learning_rate", "1e-2")
    trainer.train()
    about = json.loads((tmp_path / "policy" / "best" / "evaluation.json").read_text())
    errors = logged(trainer, "eval_action_error")
    assert about["metrics"]["eval_action_error"] == min(errors) and about["step"] == 2 * (
        errors.index(min(errors)) + 1
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*EVALUATED, "--metric_for_best_model", "eval_action_eror"], "did you mean eval_action_error"),
        (
            [*EVALUATED, "--metric_for_best_model", "eval_success"],
            "the metrics will be eval_loss, eval_action_error, eval_a",
        ),
        (["--metric_for_best_model", "eval_loss"], "nothing is evaluated"),
    ],
)
def test_a_metric_that_there_will_not_be_is_refused_at_once(recipe, flags, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(recipe, *flags)


def test_a_replacement_of_the_best_policy_that_was_killed_is_mended(recipe, tmp_path):
    flags = ["--eval_strategy", "steps", "--eval_steps", "6", "--metric_for_best_model", "success"]
    output = tmp_path / "policy"
    (output / ".best.previous").mkdir(parents=True)
    (output / ".best.partial").mkdir()
    trainer_for(recipe, *flags, closed_loop=Expert()).train()
    assert json.loads((output / "best" / "evaluation.json").read_text())["step"] == 6
    assert not [path for path in output.iterdir() if path.name.startswith(".best")]


# ---------------------------------------------------------------- two processes


@pytest.mark.slow
def test_two_processes_find_what_one_finds(recipe, tmp_path):
    """12 frames in batches of 5 on two processes: the last one repeats frames, which must not count twice."""
    flags = [*EVALUATED, "--per_device_eval_batch_size", "5"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [Path(__file__).with_name("evaluate_in_two.py"), recipe, tmp_path, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = trainer_for(recipe, *flags).evaluate()
    for name in [name for name in alone if "action_error" in name]:
        assert first["both"][name] == second["both"][name] == pytest.approx(alone[name], rel=1e-5)
    for found in (first["both"], second["both"], first["closed loop only"], second["closed loop only"]):
        assert (found["eval_success"], found["eval_rank"]) == (0.5, 0.0)
    assert "eval_loss" not in first["closed loop only"]
    # A failure of the main process is a failure of all: none waits for ever.
    assert first["error"] == "the simulator is gone" and second["error"].endswith("ValueError: the simulator is gone")


# ------------------------------------------------------------------ what is left


def test_short_runs_leave_curves_and_a_line_for_every_log(recipe, tmp_path):
    trainer = trainer_for(recipe, *EVALUATED, "--logging_steps", "50", "--max_steps", "3")
    trainer.train()
    output = tmp_path / "policy"
    assert (output / "loss.png").stat().st_size > 5000
    rows = read_summary(output / "summary.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [3]
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 3]
    assert all({"step", "epoch", "time"} <= set(row) for row in rows)
    assert [row["samples_per_second"] > 0 for row in rows if "loss" in row] == [True]
    assert [0.05 < row["peak_memory_gib"] < 500 for row in rows if "loss" in row] == [True]


@pytest.mark.slow
def test_the_summary_has_every_step_once_after_a_resume(recipe, tmp_path):
    flags = [*EVALUATED, "--save_strategy", "steps", "--save_steps", "2"]
    trainer_for(recipe, *flags).train()
    file = tmp_path / "policy" / "summary.jsonl"
    whole = read_summary(file)
    file.write_text(file.read_text() + '{"step": 6, "lo')  # killed while writing
    trainer_for(recipe, *flags).train(resume_from_checkpoint=str(tmp_path / "policy" / "checkpoint-2"))
    resumed = read_summary(file)
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    assert [row["time"] for row in resumed][:3] == [row["time"] for row in whole][:3]
    trainer_for(recipe, *flags).train()
    assert [row["step"] for row in read_summary(file)] == [row["step"] for row in whole]


def test_tensorboard_gets_every_number(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_for(recipe, *EVALUATED, "--report_to", "tensorboard")
    trainer.train()
    [folder] = (tmp_path / "policy" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    errors = events.Scalars("eval/action_error/tiny_arm/dx")
    assert [event.step for event in errors] == [2, 4, 6]
    assert [event.value for event in errors] == pytest.approx(logged(trainer, "eval_action_error/tiny_arm/dx"))
    assert len(events.Scalars("train/action_loss")) == 6


def test_a_missing_reporter_is_named_before_anything_is_built(tmp_path):
    with pytest.raises(ImportError, match="trackio, which is not installed; run pip install trackio"):
        VLATrainingArguments(str(tmp_path), report_to=["tensorboard", "trackio"], use_cpu=True)
