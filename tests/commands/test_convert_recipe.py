"""`hf-vla convert-recipe`: a StarVLA configuration in, a recipe out that `hf-vla train` accepts."""

import re
from pathlib import Path

import pytest
import yaml

from hf_vla import QwenGR00TConfig
from hf_vla.commands.convert_recipe import main
from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.registry import STARVLA_NAMES, class_of, starvla_mapping
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.evaluation_arguments import EvaluationArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments
from hf_vla.training_args.starvla_modules import module_pattern
from hf_vla.training_args.starvla_recipe import convert_recipe

# As text: `1e-05` is text to YAML 1.1, and the reference is OmegaConf's.
STARVLA = """
run_id: first
run_root_dir: results/
seed: 7
trackers: [jsonl]
is_debug: false
framework:
  name: QwenPI_v3
  qwenvl: {base_vlm: ./models/Qwen3-VL-4B-Instruct, attn_implementation: flash_attention_2}
  dino: {dino_backbone: dinov2_vits14}
  action_model:
    action_dim: 7
    action_horizon: 12
    num_inference_timesteps: 6
    future_action_window_size: 15
    diffusion_model_cfg: {dropout: 0.1, cross_attention_dim: 2048, norm_type: ada_norm}
datasets:
  vlm_data: {dataset_use: coco, per_device_batch_size: 4}
  vla_data:
    data_root_dir: data
    data_mix: bridge_rt_1
    action_horizon: ${framework.action_model.action_horizon}
    CoT_prompt: "Your task is {instruction}."
    obs_image_size: [256, 192]
    include_state: "True"
    per_device_batch_size: 12
    sampler: {type: task_balanced}
    balance_dataset_weights: true
    delete_pause_frame: true
    pin_memory: false
    prefetch_factor: 3
trainer:
  gradient_accumulation_steps: 4
  max_train_steps: 900
  num_warmup_steps: 90
  save_interval: 300
  eval_interval: 100
  repeated_diffusion_steps: 4
  learning_rate: {base: 3e-05, qwen_vl_interface: 1.0e-05, action_model: 1.0e-04, layer_qformer: 1.0e-04}
  freeze_modules: "qwen_vl_interface.model.visual, project_layers"
  lr_scheduler_type: cosine_with_min_lr
  scheduler_specific_kwargs: {min_lr: 5e-07}
  loss_scale: {vla: 1.0, vlm: 0.2}
  gradient_clipping: 0.5
  max_grad_norm: 1.0
  enable_gradient_checkpointing: true
  pretrained_checkpoint: runs/before/checkpoints/steps_100_pytorch_model.pt
  reload_modules: action_model
  optimizer: {name: AdamW, betas: [0.9, 0.95], eps: 1.0e-08, weight_decay: 1.0e-08}
"""


@pytest.fixture
def source(tmp_path) -> Path:
    file = tmp_path / "starvla.yaml"
    file.write_text(STARVLA)
    return file


def parse(file):
    types = (PolicyArguments, DataArguments, EvaluationArguments, VLATrainingArguments)
    return parse_dataclasses(types, [str(file), "--use_cpu", "true", "--bf16", "false"])[0]


def test_the_recipe_says_what_starvla_says(source, tmp_path, capsys):
    output = tmp_path / "src" / "hf_vla" / "recipes" / "ours.yaml"
    main([str(source), str(output)])
    policy, data, _, args = parse(output)
    assert (policy.framework, policy.base_vlm) == ("qwen_pi_v3", "Qwen/Qwen3-VL-4B-Instruct")
    assert policy.policy_config == {
        "action_dim": 7,
        "action_horizon": 12,
        "num_inference_steps": 6,
        "repeated_diffusion_steps": 4,
        "dropout": 0.1,
    }
    assert (data.mixture, data.data_root, data.image_size, data.use_state) == ("bridge_rt_1", "data", [256, 192], True)
    assert data.prompt_template == "Your task is {instruction}."
    assert (args.output_dir, args.seed, args.max_steps, args.warmup_steps) == ("results/first", 7, 900, 90)
    assert (args.per_device_train_batch_size, args.save_steps, args.max_grad_norm) == (12, 300, 0.5)
    assert (args.learning_rate, args.weight_decay, args.adam_beta2) == (3e-5, 1e-8, 0.95)
    assert args.module_learning_rates == {r"^vlm\.": 1e-5, r"^action_head\.": 1e-4}
    assert args.freeze_modules == [r"^vlm\.model\.visual\.", r"^projectors\."]
    assert args.lr_scheduler_type == "cosine_with_min_lr" and args.lr_scheduler_kwargs == {"min_lr": 5e-7}
    assert (args.pretrained_checkpoint, args.reload_modules) == ("runs/before", [r"^action_head\."])
    assert args.activation_checkpointing and args.report_to == []
    assert data.balance_by_size and args.gradient_accumulation_steps == 1  # StarVLA accumulates nothing
    loader = (args.dataloader_persistent_workers, args.dataloader_prefetch_factor, args.dataloader_pin_memory)
    assert loader == (True, 3, False)
    # What has no place is told twice, on stderr and in the file, with its value.
    told, comments = capsys.readouterr().err, output.read_text()
    for line in (
        "trainer.max_grad_norm (1.0): gradient_clipping counts",
        "trainer.learning_rate.layer_qformer (0.0001): there is no layer_qformer in qwen_pi_v3",
        "datasets.vla_data.sampler.type (task_balanced): unknown, left out",
        "framework.dino.dino_backbone (dinov2_vits14): QwenPI_v3 does not read it",
        "datasets.vlm_data.dataset_use (coco)",
        "trainer.gradient_accumulation_steps (4): StarVLA does not read it",
        "datasets.vla_data.delete_pause_frame (True): StarVLA keeps such frames too",
    ):
        assert line in told and f"# {line}" in comments
    assert "action_horizon" not in [line.split(" ")[0] for line in told.splitlines()]


def converted(mixture="realman_example", framework="QwenGR00T", action_model=None, trainer=None, **vla_data):
    content = {
        "framework": {
            "name": framework,
            "qwenvl": {"base_vlm": "Qwen/x"},
            "action_model": action_model or {"action_dim": 8},
        },
        "datasets": {"vla_data": {"data_mix": mixture, **vla_data}},
        "trainer": trainer or {"max_train_steps": 9},
    }
    return convert_recipe(content)


@pytest.mark.parametrize(
    ("action_model", "widths"),
    [
        ({"hidden_size": 512}, (512, None)),
        ({"hidden_size": 512, "diffusion_model_cfg": {"output_dim": 256}}, (256, 512)),
        ({"diffusion_model_cfg": {"output_dim": 256}}, (256, 1024)),
        ({}, (1024, None)),
    ],
)
def test_the_decoders_widths(action_model, widths):
    config = QwenGR00TConfig(**converted(action_model=action_model).settings["policy_config"])
    assert (config.output_dim, config.mlp_hidden_size) == widths
    tree = starvla_mapping("qwen_gr00t").to_yaml(config)
    again = starvla_mapping("qwen_gr00t").to_config({"framework": {"name": "QwenGR00T", **tree["framework"]}})
    assert (again["output_dim"], again["mlp_hidden_size"]) == widths


def test_relative_actions():
    chosen = {"action_mode": "delta", "action_mode_apply_keys": ["action.delta_joints"]}
    partners = {"action_mode_state_map": {"action.delta_joints": "state.joints"}}
    recipe = converted(**chosen, **partners)
    assert (recipe.settings["action_mode"], recipe.settings["absolute_dims"]) == ("delta", [7])
    assert not recipe.unknown and not [key for key in recipe.notes if "action_mode" in key]
    # As StarVLA, keys without a partner of their name stay absolute.
    assert converted(**chosen).settings["absolute_dims"] == list(range(8))
    assert converted("robotwin", action_mode="rel").settings["absolute_dims"] == []
    crooked = converted("libero_all", action_mode="rel")
    note = crooked.notes["datasets.vla_data.action_mode_state_map"]
    assert "gripper and gripper lie elsewhere" in note and crooked.settings["absolute_dims"] == []
    unknown = converted("mine", action_mode="rel", action_mode_apply_keys=["joints"])
    assert "absolute_dims" not in unknown.settings
    assert "absolute_dims" in unknown.notes["datasets.vla_data.action_mode_apply_keys"]
    stored = converted(action_mode="abs", action_mode_apply_keys=["joints"])
    assert "action_mode" not in stored.settings
    assert "no meaning" in stored.notes["datasets.vla_data.action_mode_apply_keys"]


def test_what_belongs_to_the_robot_type():
    known = converted("libero_all", normalization_modes="q99")
    assert "action_normalization" not in known.settings
    assert "robot types say" in known.notes["datasets.vla_data.normalization_modes"]
    unknown = converted("mine", normalization_modes="q99").settings
    assert (unknown["action_normalization"], unknown["state_normalization"]) == ("q99", "q99")


def test_noise_draws_of_a_framework_that_draws_none():
    action_model = {"repeated_diffusion_steps": 8}
    recipe = converted("libero_all", "QwenOFT", action_model, {"repeated_diffusion_steps": 4})
    assert "draws no noise" in recipe.notes["trainer.repeated_diffusion_steps"]
    assert "draws no noise" in recipe.notes["framework.action_model.repeated_diffusion_steps"] and not recipe.unknown


def test_co_training_is_asked_for(source):
    settings = convert_recipe(yaml.safe_load(STARVLA), vlm_dataset=["coco.json"]).settings
    assert settings["vlm_dataset"] == ["coco.json"]
    assert (settings["vlm_per_device_train_batch_size"], settings["vlm_loss_scale"]) == (4, 0.2)
    assert "vlm_dataset" not in convert_recipe(yaml.safe_load(STARVLA)).settings


@pytest.mark.parametrize("name", STARVLA_NAMES)
def test_every_framework_gives_a_recipe_that_parses(name, tmp_path):
    """And only fields that its configuration has."""
    content = {
        "framework": {"name": name, "qwenvl": {"base_vlm": "Qwen/Qwen2.5-VL-3B-Instruct"}},
        "datasets": {"vla_data": {"data_mix": "libero_all"}},
        "trainer": {
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "scheduler_specific_kwargs": {"min_lr": 1},
        },
    }
    converted = convert_recipe(content)
    assert list(converted.notes) == ["report_to", "trainer.scheduler_specific_kwargs.min_lr"] and not converted.unknown
    assert converted.settings.pop("report_to") == ["wandb"]  # which is not installed here
    file = tmp_path / "ours.yaml"
    file.write_text(converted.as_yaml("theirs.yaml"))
    policy, data, _, args = parse(file)
    assert policy.framework == STARVLA_NAMES[name] and data.use_state is False
    fields = class_of(policy.framework, "config").__dataclass_fields__
    assert set(policy.policy_config) <= set(fields)
    assert args.lr_scheduler_kwargs in (None, {})


@pytest.mark.parametrize(
    ("path", "model_type", "pattern"),
    [
        ("qwen_vl_interface", "qwen_pi", r"^vlm\."),
        ("qwen_vl_interface.model.model.language_model", "qwen_pi", r"^vlm\.model\.language_model\."),
        ("qwen_vl_interface.model.language_model.layers", "qwen_pi", r"^vlm\.model\.language_model\.layers\."),
        ("action_model.model", "qwen_pi", r"^action_head\.transformer\."),
        ("action_model.model", "qwen_oft", r"^action_head\."),
        ("dino_encoder", "qwen_dual", r"^dino\."),
        ("dino_pro", "qwen_dual", r"^dino_projector\."),
        ("layer_qformer", "qwen_pi", None),
    ],
)
def test_module_paths(path, model_type, pattern):
    assert module_pattern(path, model_type) == pattern


@pytest.mark.parametrize("name", ["QwenPI_v3", "QwenDual", "QwenOFT"])
def test_patterns_match_a_model_of_that_framework(reference, name):
    """Of every first-level module of StarVLA's, by its tensors' names."""
    model = reference.policy(name)
    names = [name for name, _ in model.named_parameters()]
    theirs = {"QwenPI_v3": "project_layers", "QwenDual": "dino_encoder dino_pro", "QwenOFT": "action_model.model"}[
        name
    ]
    for path in ["qwen_vl_interface.model.visual", "action_model", *theirs.split()]:
        pattern = module_pattern(path, STARVLA_NAMES[name])
        assert any(re.search(pattern, parameter) for parameter in names), (path, pattern)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_id: x", "not a StarVLA training configuration"),
        ("framework: {name: QwenQformer}", "known are QwenPI_v3"),
        ("framework: {name: QwenPI}", "base_vlm is missing"),
        ("framework: {name: QwenPI, qwenvl: {base_vlm: Qwen/x}}", "data_mix is missing"),
        ("framework: {name: '${a.b}'}", "refers to a.b, which it does not have"),
        ("a: ${a}\nframework: {name: '${a}'}", "round in a circle"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_bad_input_is_one_line(tmp_path, text, message, capsys):
    file = tmp_path / "starvla.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main([str(file)])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_a_recipe_is_not_overwritten(source, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        main([str(source), str(tmp_path / "mine.yaml")])
    assert "exists" in capsys.readouterr().err and (tmp_path / "mine.yaml").read_text() == "mine"
