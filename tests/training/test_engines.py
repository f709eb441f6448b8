"""DDP, DeepSpeed and FSDP2: two processes on the CPU train as one does; what `launch_configs/` says is what is meant."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from reference_cases import base_vlm
from safetensors.torch import load_file, save_file
from tiny_policy import tiny_trainer
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction
from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.commands.launching import launch_command, split_launch_arguments
from hf_vla.commands.train import main as train
from hf_vla.training.engines import float32_sums, prepare_accelerator, prepare_arguments
from hf_vla.training_args.arguments import VLATrainingArguments

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "src" / "hf_vla" / "launch_configs"
WORKER = Path(__file__).with_name("engine_worker.py")
HALF = ["--per_device_train_batch_size", "2", "--vlm_per_device_train_batch_size", "1"]


def two_processes(what: str, options) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command += [what, json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-6000:]


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_ddp_deepspeed_and_fsdp2_train_as_one_process_does(cotraining_recipe, recipe, tmp_path):
    """The same losses and weights for the same global batches, co-training included, and after resuming under ZeRO-2."""
    start, alone = tmp_path / "policy", tmp_path / "alone"
    train([str(cotraining_recipe), "--max_steps", "1"])
    settings = yaml.safe_load(cotraining_recipe.read_text()) | {"policy": str(start)}
    for name in ("framework", "policy_config", "vlm_config", "image_processor_config"):
        settings.pop(name, None)
    from_policy = tmp_path / "from_policy.yaml"
    from_policy.write_text(yaml.safe_dump(settings))
    train([str(from_policy), "--output_dir", str(alone)])

    def flags(name: str, *more: str) -> list[str]:
        engine = [] if name == "ddp" else ["--deepspeed", str(CONFIGS / f"{name}.json")]
        return [str(from_policy), *HALF, "--output_dir", str(tmp_path / name), *engine, *more]

    resume = ["--resume_from_checkpoint", str(tmp_path / "zero2" / "checkpoint-2")]
    # A head of which a part is held unused, in checkpointed blocks: DDP must look for parameters without gradient.
    unused = [str(recipe), "--output_dir", str(tmp_path / "unused"), "--activation_checkpointing", "true"]
    two_processes("train", [flags("ddp"), flags("zero2"), flags("zero3"), flags("zero2", *resume), unused])
    assert (tmp_path / "unused" / "model.safetensors").is_file()
    # A checkpoint has no optimizer state of the part that is held unused; a run goes on without it.
    steps = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    kept, resumed = ([str(recipe), *steps, "--output_dir", str(tmp_path / name)] for name in ("kept", "resumed"))
    resumed += ["--resume_from_checkpoint", str(tmp_path / "kept" / "checkpoint-2")]
    under_fsdp2 = [str(from_policy), *HALF, "--output_dir", str(tmp_path / "fsdp2")]
    runs = [under_fsdp2, kept, resumed]
    two_processes("train_fsdp2", {"environment": environment("fsdp2"), "runs": runs})
    for one, other in zip(history(tmp_path / "kept"), history(tmp_path / "resumed"), strict=True):
        assert one["loss"] == other["loss"] and one["grad_norm"] == other["grad_norm"], one["step"]
    expected, weights = history(alone), load_file(alone / "model.safetensors")
    assert [row["step"] for row in expected] == [1, 2, 3, 4]
    for name in ("ddp", "zero2", "zero3", "fsdp2"):
        for one, other in zip(expected, history(tmp_path / name), strict=True):
            for key in ("loss", "action_loss", "vlm_loss", "grad_norm"):
                assert one[key] == pytest.approx(other[key], rel=1e-4), (name, one["step"], key)
        found = AutoModel.from_pretrained(tmp_path / name).state_dict()
        for key, weight in weights.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-6, msg=f"{key} of {name}")
        by_deepspeed = bool(list((tmp_path / name / "checkpoint-4").glob("global_step*")))
        assert by_deepspeed == name.startswith("zero")
        assert (tmp_path / name / "checkpoint-4" / "optimizer.bin").is_file() == (name == "fsdp2")
    # The resumed run wrote checkpoint-4 anew; its first steps are in the history of the checkpoint it began from.
    state = json.loads((tmp_path / "zero2" / "checkpoint-2" / "trainer_state.json").read_text())
    assert len(state["log_history"]) == 2


@pytest.mark.slow
def test_sharded_models_hold_and_learn_what_whole_ones_do(reference, tmp_path):
    """ZeRO-3: loading and making policies. FSDP2: gradients of a co-training step."""
    torch.manual_seed(0)
    settings = {
        "action_dim": 2,
        "action_horizon": 4,
        "action_hidden_size": 16,
        "attention_head_dim": 8,
        "dropout": 0.0,
    }
    settings |= {"statistics": {"robot": {"action": {"min": [-1.0] * 2, "max": [1.0] * 2}}}}
    settings |= {"normalization_modes": {"robot": {"action": "min_max"}}, "repeated_diffusion_steps": 2}
    policy, processor = QwenPIV3ForActionPrediction.from_vlm(base_vlm(), random_init=True, **settings)
    policy.save_pretrained(tmp_path / "policy")
    for p in policy.parameters():
        p.data.add_(1)
    policy.save_pretrained(tmp_path / "other")
    policy.save_pretrained(tmp_path / "too_much")
    surplus = {**load_file(tmp_path / "too_much" / "model.safetensors"), "vlm.surplus": torch.zeros(1)}
    save_file(surplus, tmp_path / "too_much" / "model.safetensors", {"format": "pt"})
    shutil.copytree(base_vlm(), tmp_path / "vlm")
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base_vlm())).save_pretrained(tmp_path / "vlm")

    policy = AutoModel.from_pretrained(tmp_path / "policy").train()
    batches = [cotraining_batch(processor, seed) for seed in (0, 1)]
    for batch in batches:
        (policy(**batch).loss / 2).backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    torch.save({"batches": batches, "gradients": gradients}, tmp_path / "batches.pt")
    zero3 = {name: str(tmp_path / name) for name in ("other", "too_much", "vlm")}
    zero3 |= {"folder": str(tmp_path / "policy"), "native": str(reference.run_folder("QwenGR00T"))}
    fsdp2 = {"folder": zero3["folder"], "batches": str(tmp_path / "batches.pt"), "environment": environment("fsdp2")}
    fsdp2["blocks"] = ["Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock", "DiffusionTransformerBlock"]
    two_processes("sharded", {"zero3": zero3 | {"base_vlm": str(base_vlm())}, "fsdp2": fsdp2})


def cotraining_batch(processor, seed: int) -> dict:
    """One robot sample and one conversation, with a fixed draw."""
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(64, 64, 3, generator=generator) * 255).byte().numpy()
    actions = torch.rand(1, 4, 2, generator=generator)
    batch = dict(processor(images=[[image]], text=["go"], actions=actions.numpy(), unnorm_key="robot"))
    batch |= {"noise": torch.randn(2, 4, 2, generator=generator), "timestep": torch.rand(2, generator=generator)}
    content = [{"type": "image"}, {"type": "text", "text": "what"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "it"}]}]
    return batch | {"vlm_batch": dict(processor.encode_conversations([[image]], [turns]))}


def environment(name: str) -> dict[str, str]:
    """Return what `hf-vla train --launch NAME` tells its processes."""
    launch, rest = split_launch_arguments(["recipe.yaml", "--launch", name, "--num_processes", "8"])
    arguments = launch_command_parser().parse_args(launch_command(launch, ["train", *rest])[3:])
    arguments, file, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config or ())  # as accelerate goes on
    before = dict(os.environ)
    try:
        found = (
            prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
        )
    finally:
        os.environ.clear()
        os.environ.update(before)
    own = ("ACCELERATE_", "FSDP_")
    return {key: value for key, value in found.items() if key.startswith(own) and value != before.get(key)}


class TestConfigurations:
    @pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3", "zero3_offload"])
    def test_launching(self, name):
        told = environment(name)
        assert told["ACCELERATE_MIXED_PRECISION"] == "no", "the recipe's bf16 decides"
        assert (told.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp2")
        assert (told.get("ACCELERATE_USE_DEEPSPEED") == "true") == name.startswith("zero")
        if name.startswith("zero"):
            file = Path(told["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
            assert file == CONFIGS / f"{name}.json" and file.is_file()
            assert told["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str(name != "zero2").lower()

    def test_fsdp2(self, monkeypatch):
        for key, value in environment("fsdp2").items():
            monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type), "otherwise no model.safetensors is written"
        assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
        assert plugin.transformer_cls_names_to_wrap is None, "the policy's own blocks"

    @pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
    def test_deepspeed_fills_in_what_is_automatic(self, name):
        """With the backbone's hidden size, which transformers looks for in the policy's configuration."""
        config = HfTrainerDeepSpeedConfig(str(CONFIGS / f"{name}.json"))
        arguments = SimpleNamespace(
            world_size=2,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=5,
            max_grad_norm=0.5,
            save_on_each_node=False,
            get_warmup_steps=lambda steps: 0,
            **dict.fromkeys(("fp16", "fp16_full_eval", "bf16_full_eval"), False),
            **dict.fromkeys(("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"), 0.1),
            bf16=True,
        )
        config.trainer_config_process(arguments)
        config.trainer_config_finalize(arguments, SimpleNamespace(config=QwenPIV3Config()), 10)
        assert "auto" not in json.dumps(config.config)
        assert config.config["train_batch_size"] == 30 and config.config["bf16"]["enabled"] is True
        zero = config.config["zero_optimization"]
        assert zero["stage"] == int(name[4])
        hidden = QwenPIV3Config().vlm_config.text_config.hidden_size
        if name != "zero2":
            assert zero["stage3_param_persistence_threshold"] == 10 * hidden
            assert zero["stage3_gather_16bit_weights_on_model_save"] is True, (
                "otherwise no model.safetensors is written"
            )
        assert ("offload_optimizer" in zero) == name.endswith("offload")


class TestSettings:
    def test_fsdp_by_a_flag_is_what_the_configuration_says(self, tmp_path):
        flags = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--fsdp", "true"]
        plugin = parse_dataclasses((VLATrainingArguments,), flags)[0][0].fsdp_plugin_args
        assert (plugin["fsdp_version"], plugin["state_dict_type"]) == (2, "FULL_STATE_DICT")
        assert plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP" and plugin["reshard_after_forward"]
        assert not plugin["cpu_ram_efficient_loading"] and not plugin.get("activation_checkpointing")
        assert not parse_dataclasses((VLATrainingArguments,), [*flags[:-1], "false"])[0][0].fsdp_plugin_args

    def test_ddp_looks_for_parameters_without_gradient(self, tmp_path):
        arguments = VLATrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        prepare_arguments(arguments)
        assert arguments.ddp_find_unused_parameters is True
        arguments.ddp_find_unused_parameters = False
        prepare_arguments(arguments)
        assert arguments.ddp_find_unused_parameters is False, "what the user says holds"

    def test_several_gpus_in_one_process_are_refused(self, tmp_path):
        arguments = VLATrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        arguments._n_gpu = 2
        with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
            prepare_arguments(arguments)

    def test_fsdp_would_draw_other_dropout_in_its_second_computation(self):
        plugin = SimpleNamespace(activation_checkpointing=True, fsdp_version=2, mixed_precision_policy=None)
        accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
        with pytest.raises(ValueError, match="set activation_checkpointing: true in the recipe"):
            prepare_accelerator(accelerator, torch.nn.Sequential(torch.nn.Dropout(0.1)))
        prepare_accelerator(accelerator, torch.nn.Sequential(torch.nn.Dropout(0.0)))

    def test_processes_draw_noise_of_their_own_in_one_order_of_samples(self, monkeypatch, tmp_path):
        """The first batch of a shuffled dataset is dealt out as one order; noise is each process's own."""

        def begin(process: int, processes: int = 2, seed: int = 7) -> tuple[list[int], torch.Tensor]:
            monkeypatch.setattr(TrainingArguments, "world_size", processes)
            monkeypatch.setattr(TrainingArguments, "process_index", process)
            trainer = tiny_trainer(tmp_path, seed=seed)
            begun = []

            class Begin(TrainerCallback):
                def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
                    begun.extend([list(train_dataloader.batch_sampler), torch.rand(8)])
                    raise StopIteration

            trainer.add_callback(Begin)
            with pytest.raises(StopIteration):
                trainer.train()
            return tuple(begun)

        orders, noises = zip(begin(0), begin(1), begin(1), begin(1, seed=5), strict=True)
        assert orders[0] == orders[1] != orders[3]
        assert not torch.equal(noises[0], noises[1]) and torch.equal(noises[1], noises[2])
        assert not torch.equal(noises[1], noises[3])

    def test_fsdp_sums_in_float32(self):
        from torch.distributed.fsdp import MixedPrecisionPolicy

        policy = float32_sums(MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16))
        assert policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
