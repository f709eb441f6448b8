"""A run that is killed and resumed is the run that was not: losses and weights to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from resume_runs import assert_same, outcome, rows, trainer_for
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import TrainerState

from hf_vla.training.resuming import whole_batches

TRAIN = ["-m", "hf_vla", "train"]
# `hf-vla train` to its end, then once more, with losses that are NaN in one of the processes.
TWICE = """
import sys
from hf_vla.commands.train import main
from transformers import Trainer

main(sys.argv[1:])
compute = Trainer.compute_loss

def compute_loss(self, *args, **kwargs):
    loss, outputs = compute(self, *args, **kwargs)
    lost = self.args.process_index == 1 and self.state.global_step == 7
    return loss * float("nan") if lost else loss, outputs

Trainer.compute_loss = compute_loss
try:
    main([*sys.argv[1:], "--output_dir", sys.argv[-1] + "_nan"])
except SystemExit as stop:
    assert stop.code == 2
else:
    raise AssertionError("was not stopped")
"""


# In the first epoch, at its end, in the second.
@pytest.mark.parametrize("step", [3, 6, 9])
def test_resuming_goes_on_to_the_bit(settings, whole, step, tmp_path):
    trainer = trainer_for(settings, tmp_path)
    seen = []
    read = trainer.train_dataset.draw
    trainer.train_dataset.draw = lambda *index: seen.append(index[0]) or read(*index)
    trainer.train(resume_from_checkpoint=str(whole[0] / f"checkpoint-{step}"))
    assert_same(outcome(trainer), whole[1])
    # No sample is read to be thrown away; the loader is one batch ahead.
    assert seen[0] == step % 6 * 4 and len(seen) == (10 - step) * 4 + 4


@pytest.mark.slow
def test_means_over_steps_before_and_after_the_resume(settings, tmp_path):
    """With an evaluation between them, too, which draws noise."""
    flags = ["--logging_steps", 4, "--eval_strategy", "steps", "--eval_steps", 3]
    trainer = trainer_for(settings, tmp_path / "whole", *flags, evaluate=4)
    trainer.train()
    resumed = trainer_for(settings, tmp_path / "whole", *flags, evaluate=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert [row["step"] for row in outcome(resumed)[0] if "loss" in row] == [4, 8]
    assert_same(outcome(resumed), outcome(trainer))


@pytest.mark.slow
def test_a_backbone_whose_weights_are_saved_under_other_names(settings, tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 8, "window_size": 32, "temporal_patch_size": 2}
    text["rope_parameters"]["rope_theta"] = 10000.0
    vlm = {"model_type": "qwen2_5_vl", "tie_word_embeddings": True, "text_config": text, "vision_config": vision}
    flags = ["--vlm_config", json.dumps(vlm), "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 2]
    flags += ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 1]
    trainer = trainer_for(settings, tmp_path, *flags, evaluate=4)
    trainer.train()
    names = load_file(tmp_path / "checkpoint-3" / "model.safetensors").keys()
    assert {name for name in names if "visual" in name} - trainer.model.state_dict().keys()
    resumed = trainer_for(settings, tmp_path, *flags, evaluate=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(outcome(resumed), outcome(trainer))


def test_a_shuffled_dataset_goes_on_to_the_bit(settings, tmp_path):
    """A dataset that is no mixture, shuffled by the Trainer; one sample an item, in the second epoch."""

    def shuffled():
        trainer = trainer_for(settings, tmp_path / "run", "--save_steps", 8)
        trainer.args.train_sampling_strategy = "random"
        trainer.train_dataset = trainer.train_dataset.datasets[0]
        return trainer

    trainer = shuffled()
    trainer.train()
    resumed = shuffled()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert_same(outcome(resumed), outcome(trainer))


@pytest.mark.parametrize(("size", "expected"), [(26, 24), (24, 24), (5, 8)])
def test_a_steps_samples_do_not_depend_on_the_number_of_processes(size, expected):
    """Eight a step: the same eight whatever the processes, devices and accumulation, and in each step of an epoch."""

    def steps(processes, per_device):
        accumulation = 8 // (processes * per_device)
        shards = [
            list(BatchSamplerShard(BatchSampler(whole_batches(size, 8), per_device, False), processes, rank))
            for rank in range(processes)
        ]
        of_step = [shard[i : i + accumulation] for i in range(0, len(shards[0]), accumulation) for shard in shards]
        return [
            sorted(index for part in of_step[i : i + processes] for batch in part for index in batch)
            for i in range(0, len(of_step), processes)
        ]

    reference = steps(1, 8)
    assert sum(map(len, reference)) == expected and {len(step) for step in reference} == {8}
    for processes, per_device in [(1, 2), (2, 4), (2, 1), (4, 2), (8, 1)]:
        assert steps(processes, per_device) == reference


def start(log: Path, program: list, *arguments, processes: int = 1) -> subprocess.Popen:
    """Start a program, a file or `-m` with a module, in processes with two workers each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    workers = ["--dataloader_num_workers", 2, "--dataloader_persistent_workers", "true"]
    size = ["--global_batch_size", 4, "--per_device_train_batch_size", 4 if processes == 1 else 1]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, [*program, arguments[0], *workers, *size, *arguments[1:]])],
        stdout=subprocess.PIPE,
        stderr=log.open("a"),
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def kill_at_step(process: subprocess.Popen, step: int) -> None:
    """Kill -9 the process and all that it has started, when it logs that step."""
    for line in process.stdout:
        step -= line.startswith("{'loss'")
        if step == 0:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                member.kill()
            psutil.wait_procs(family[1:])
            break
    process.stdout.close()
    process.wait()


def finish(process: subprocess.Popen, log: Path) -> None:
    process.communicate(timeout=900)  # of a process that waits for one that has stopped
    assert process.returncode == 0, log.read_text()


def left_by(output: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    state = TrainerState.load_from_json(str(output / "checkpoint-10" / "trainer_state.json"))
    return rows(state.log_history), load_file(output / "model.safetensors")


@pytest.fixture(scope="module")
def two_processes(settings, tmp_path_factory) -> Path:
    """The run that nothing stops, of two processes with two micro-batches a step; beside it the one with NaN, `run_nan`."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "twice.py").write_text(TWICE)
    log, output = folder / "stderr", folder / "run"
    finish(start(log, [folder / "twice.py"], settings, "--output_dir", output, processes=2), log)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_a_random_step(settings, whole, two_processes, processes, tmp_path):
    log, output = tmp_path / "stderr", tmp_path / "run"
    step = random.SystemRandom().randint(4, 9)
    process = start(log, TRAIN, settings, "--output_dir", output, processes=processes)
    kill_at_step(process, step)
    assert process.returncode == -signal.SIGKILL, log.read_text()
    assert not (output / "model.safetensors").exists()
    flags = ["--output_dir", output, "--resume_from_checkpoint", "true"]
    finish(start(log, TRAIN, settings, *flags, processes=processes), log)
    expected = (whole[1][0], load_file(whole[0] / "checkpoint-10" / "model.safetensors"))
    try:
        assert_same(left_by(output), expected if processes == 1 else left_by(two_processes))
    except AssertionError as error:
        raise AssertionError(f"killed at step {step}: {error}") from error
    assert not (output / ".saving").exists()


@pytest.mark.slow
def test_all_processes_stop_where_one_has_a_loss_that_is_nan(settings, two_processes, tmp_path):
    output = two_processes.with_name("run_nan")
    report = json.loads((output / "nan_batch.json").read_text())
    assert report["step"] == 8 and [(b["rank"], b["micro_batch"], b["loss"]) for b in report["batches"]] == [
        (1, 0, "nan"),
        (1, 1, "nan"),
    ]
    # The second step of the second epoch has items 4 to 7; of each micro-batch's two, the second is this process's.
    mixture = trainer_for(settings, tmp_path).train_dataset
    mixture.set_epoch(1)
    samples = [{"index": index, **mixture.sample_id(index)} for index in (5, 7)]
    assert [sample for batch in report["batches"] for sample in batch["samples"]] == samples
    assert (two_processes.parent / "stderr").read_text().count("error: a loss of step 8 is nan: stopped before") == 2
    assert not (output / "model.safetensors").exists()


@pytest.mark.slow
def test_one_process_goes_on_from_two(settings, two_processes, tmp_path, caplog):
    """With the same global batch the data goes on; what each process draws can not."""
    trainer = trainer_for(settings, tmp_path)
    seen, draw = [], trainer.train_dataset.draw
    trainer.train_dataset.draw = lambda index, attempt=0: seen.append(index) or draw(index, attempt)
    trainer.train(resume_from_checkpoint=str(two_processes / "checkpoint-9"))
    assert seen[:4] == [12, 13, 14, 15] and trainer.state.global_step == 10
    assert "processes.world_size is 2 in the checkpoint, 1 now" in caplog.text
    assert "the number of processes has changed" in caplog.text
