"""What saves memory and time changes no result: checkpointing, compilation, Liger's kernels; and noise draws a step."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_trainer import trainer_for
from tiny_policy import TinyPolicy, tiny_trainer, weights

from hf_vla.training import engines

COMPILED = ["--torch_compile", "true", "--torch_compile_backend", "aot_eager", "--max_steps", "3"]


def losses(trainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "flags",
    [
        ["--activation_checkpointing", "true"],
        pytest.param(COMPILED, marks=pytest.mark.slow),
        pytest.param([*COMPILED, "--freeze_modules", "^vlm", "--ema_decay", "0.9"], marks=pytest.mark.slow),
    ],
)
def test_a_run_has_the_same_losses_and_files(recipe, flags, tmp_path):
    """The quickstart's recipe has no dropout."""
    saved = trainer_for(recipe, *flags)
    saved_losses = losses(saved)
    assert saved_losses == pytest.approx(losses(trainer_for(recipe, *_without_savers(flags))), rel=2e-4)
    saved.save_model(str(tmp_path / "saved"))
    assert type(saved.model).from_pretrained(tmp_path / "saved").state_dict().keys() == saved.model.state_dict().keys()


def _without_savers(flags: list[str]) -> list[str]:
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [
        word
        for flag, value in pairs
        if "compile" not in flag and "checkpointing" not in flag
        for word in (flag, value)
    ]


def test_blocks_are_compiled_one_by_one(recipe):
    trainer = trainer_for(recipe, "--torch_compile", "true", "--torch_compile_backend", "eager", "--max_steps", "1")
    trainer.train()
    compiled = {
        name.removesuffix("._orig_mod") for name, _ in trainer.model_wrapped.named_modules() if "_orig_mod" in name
    }
    assert {"vlm.model.language_model.layers.0", "action_head.transformer.transformer_blocks.0"} <= compiled
    assert not {"", "vlm", "action_head"} & compiled
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())


@pytest.mark.parametrize(
    ("given", "compiled", "said"),
    [
        ({}, True, []),
        ({"device": torch.device("cpu")}, False, []),
        ({"torch_compile": False}, False, []),
        ({"deepspeed": "zero2.json"}, False, []),
        ({"fsdp": "full_shard"}, False, []),
        ({"reason": "no compiler"}, False, ["training without torch.compile, which does not work here: no compiler"]),
    ],
)
def test_gpus_compile_by_default(monkeypatch, given, compiled, said):
    reason, warnings = given.pop("reason", None), []
    monkeypatch.setattr(engines, "why_not_compiled", lambda device: reason)
    monkeypatch.setattr(engines.logger, "warning", warnings.append)
    args = {"torch_compile": None, "device": torch.device("cuda"), "deepspeed": None, "fsdp": [], **given}
    args = SimpleNamespace(torch_compile_backend=None, **args)
    with torch._dynamo.config.patch(suppress_errors=False):
        engines.compile_by_default(args, torch.nn.Linear(1, 1))
        assert torch._dynamo.config.suppress_errors is compiled
    assert args.torch_compile is compiled and args.torch_compile_backend == ("inductor" if compiled else None)
    assert warnings == said


def test_where_torch_can_not_compile_it_says_why(monkeypatch):
    def compile(function):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: no C++ compiler\n\nand more")

    monkeypatch.setattr(torch, "compile", compile)
    reason = engines.why_not_compiled(torch.device("cpu"))
    assert reason == "backend='inductor' raised: InvalidCxxCompiler: no C++ compiler"


def test_quantised_backbones_are_not_compiled(monkeypatch):
    monkeypatch.setattr(engines, "why_not_compiled", lambda device: None)
    args = SimpleNamespace(torch_compile=None, device=torch.device("cuda"), deepspeed=None, fsdp=[])
    engines.compile_by_default(args, SimpleNamespace(is_quantized=True))
    assert args.torch_compile is False


def test_repeated_diffusion_steps_override_the_policy(recipe):
    trainer = trainer_for(recipe, "--repeated_diffusion_steps", "5")
    assert trainer.model.config.repeated_diffusion_steps == 5
    drawn = []
    trainer.model.action_head.action_encoder.register_forward_pre_hook(lambda m, args: drawn.append(args[0].shape[:2]))
    trainer.args.max_steps = 1
    trainer.train()
    assert drawn == [(4, 5)]  # 5 draws of 4 samples


def test_repeated_diffusion_steps_need_a_policy_that_draws(tmp_path):
    model = TinyPolicy()
    model.config = SimpleNamespace(model_type="qwen_oft")
    with pytest.raises(ValueError, match="repeated_diffusion_steps is for policies that draw noise; qwen_oft doesn't"):
        tiny_trainer(tmp_path, model, repeated_diffusion_steps=4)


@pytest.fixture
def liger(monkeypatch):
    """Liger's entry points, recording how they are called."""
    calls = []

    def apply(model, **options):
        calls.append((model.config.model_type, options))
        return calls

    package, transformers = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    transformers._apply_liger_kernel_to_instance = apply
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3_vl": apply, "llama": apply}
    for module in (package, transformers, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    return SimpleNamespace(calls=calls, kernels=patches.MODEL_TYPE_TO_APPLY_LIGER_FN)


def test_liger_is_applied_to_the_backbone_once(recipe, liger):
    flags = ["--use_liger_kernel", "true", "--liger_kernel_config", '{"rope": false}', "--max_steps", "1"]
    trainer = trainer_for(recipe, *flags)
    trainer.train()
    assert liger.calls == [("qwen3_vl", {"rope": False})]
    assert trainer.evaluate(eval_dataset=[trainer.train_dataset[0]])["eval_loss"] > 0


def test_liger_without_kernels_for_the_backbone(recipe, liger):
    del liger.kernels["qwen3_vl"]
    with pytest.raises(ValueError, match="no kernels for the backbone's model_type 'qwen3_vl'; it has some for llama"):
        trainer_for(recipe, "--use_liger_kernel", "true")
    assert not liger.calls


def test_liger_that_is_not_installed(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ImportError, match="use_liger_kernel needs Liger .*pip install liger-kernel"):
        trainer_for(recipe, "--use_liger_kernel", "true")


def test_more_layers_than_the_model_has_are_no_silent_half(recipe, tmp_path):
    """A checkpoint is loaded whole or not at all; named modules may be taken out of a larger one."""
    first = trainer_for(recipe, "--max_steps", "1")
    first.model.save_pretrained(tmp_path / "larger")
    fewer = recipe.read_text().replace("num_hidden_layers: 2", "num_hidden_layers: 1")
    recipe.write_text(fewer)
    flags = ["--pretrained_checkpoint", str(tmp_path / "larger")]
    with pytest.raises(ValueError, match="does not fit this model: .* tensors are in only one"):
        trainer_for(recipe, *flags)
    part = trainer_for(recipe, *flags, "--reload_modules", "^vlm.model.visual", "action_encoder")
    given = weights(first.model)
    for name, value in weights(part.model).items():
        if name.startswith("vlm.model.visual") or "action_encoder" in name:
            assert torch.equal(value, given[name]), name
