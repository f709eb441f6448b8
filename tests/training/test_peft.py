"""Adapters: what is trained, saved, loaded, merged and resumed, for every framework; backbones in 4 and 8 bits; bad input."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_cases import FAST_TOKENIZER, base_vlm
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from hf_vla import Policy
from hf_vla.checkpoints.adapted_modules import merge, plain_name
from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.registry import FRAMEWORKS, class_of
from hf_vla.training.lora import add_adapter
from hf_vla.training.parameter_groups import freeze, rate_groups
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.peft import PeftArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build

HEAD = {"attention_head_dim": 16, "num_future_tokens": 2, "repeated_diffusion_steps": 2}
DIT = {**HEAD, "action_hidden_size": 32, "num_action_layers": 2, "output_dim": 24}
DINO = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
OWN = {
    "qwen_pi_v3": {**HEAD, "action_hidden_size": 32},
    "qwen_pi": HEAD,
    "qwen_gr00t": DIT,
    "qwen_dual": {**DIT, "dino_config": DINO},
    "qwen_oft": {},
    "qwen_fast": {"fast_tokenizer": str(FAST_TOKENIZER), "generation_constraint": "length"},
    "qwen_adapter": {"num_action_queries": 4, "num_action_layers": 3},
    "qwen_discrete_diffusion": {**HEAD, "num_bins": 32},
}
RANGE = {"min": [-1.0] * 2, "max": [1.0] * 2}
COMMON = {
    "action_dim": 2,
    "state_dim": 2,
    "action_horizon": 4,
    "image_size": [64, 64],
    "statistics": {"arm": {"action": RANGE, "state": RANGE}},
    "normalization_modes": {"arm": {"action": "min_max", "state": "min_max"}},
}
TRAINED_IN_FULL = {
    "qwen_pi_v3": {"projectors", "action_head"},
    "qwen_dual": {"dino", "dino_projector", "action_head"},
    "qwen_fast": set(),
}


def from_vlm(framework: str, vlm, **options):
    torch.manual_seed(0)
    return class_of(framework, "model").from_vlm(str(vlm), **COMMON, **OWN[framework], **options)


def batch_of(processor) -> dict:
    rng = np.random.default_rng(0)
    images = [[rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)] for _ in range(2)]
    state, actions = rng.uniform(-1, 1, (2, 2)), rng.uniform(-1, 1, (2, 4, 2))
    return processor(images=images, text=["open the drawer", "stop"], state=state, actions=actions)


def predicted(policy, batch) -> torch.Tensor:
    policy.eval()
    return policy.predict_action(**batch, noise=torch.zeros(2, 4, 2))


def adapted(model, base, steps: int = 2, batch=None, **settings):
    """The policy with an adapter, after a few large steps."""
    which = {"policy": str(base)} if (Path(base) / "processor_config.json").exists() else {"base_vlm": str(base)}
    torch.manual_seed(1)
    model = add_adapter(model, PolicyArguments(**which), PeftArguments(use_peft=True, **settings))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def cached_as(cache: Path, repository: str, source: Path) -> None:
    """A folder as huggingface_hub would have cached the repository."""
    folder, revision = cache / f"models--{repository.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(source, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


@pytest.fixture(scope="module")
def base(reference, tmp_path_factory):
    """Folders of policies with random weights, by framework, each written once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(framework: str) -> Path:
        path = root / framework
        if not path.exists():
            vlm = reference.action_backbone() if framework == "qwen_fast" else base_vlm()
            torch.manual_seed(0)  # whichever tests run before
            for part in from_vlm(framework, vlm, random_init=True):
                part.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """An adapter's folder, of a QwenOFT policy; not to be changed."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    processor = AutoProcessor.from_pretrained(base("qwen_oft"))
    model = adapted(AutoModel.from_pretrained(base("qwen_oft")), base("qwen_oft"), batch=batch_of(processor))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_adapter_is_saved_alone_loads_as_a_policy_and_merges(framework, base, tmp_path):
    folder = base(framework)
    processor, plain = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    batch = batch_of(processor)
    model = adapted(AutoModel.from_pretrained(folder), folder, batch=batch)
    expected = predicted(model, batch)
    trained = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    lora = {name for name in trained if ".lora_" in name or "trainable_tokens" in name}
    assert all(name.startswith("vlm.model.language_model.") for name in lora) and lora
    assert {name.split(".")[0] for name in trained - lora} == TRAINED_IN_FULL.get(framework, {"action_head"})

    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "processor_config.json"} <= files
    assert "model.safetensors" not in files
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "LoRA of rank 16" in card and "hf_vla.Policy.from_pretrained" in card
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tables = ("pos_embed.pe", "bin_centers")  # discrete diffusion's, which its checkpoints hold
    number = sum(x.numel() for name, x in saved.items() if not name.endswith(tables))
    assert number == sum(p.numel() for p in model.parameters() if p.requires_grad)

    loaded = AutoModel.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is type(plain) and not loaded.training
    assert torch.equal(predicted(loaded, batch), expected)
    assert not torch.allclose(predicted(plain, batch), expected)
    if framework in ("qwen_fast", "qwen_oft"):  # the others draw noise
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(predicted(AutoModel.from_pretrained(tmp_path / "again"), batch), expected)
    assert (AutoProcessor.from_pretrained(tmp_path / "adapter")).to_dict() == processor.to_dict()

    merge(loaded).save_pretrained(tmp_path / "merged")
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    assert torch.allclose(predicted(merged, batch), expected, atol=1e-5)
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert any("q_proj" in name for name in moved) and not any("vlm.model.visual" in name for name in moved)


@pytest.mark.parametrize("framework", ["qwen_pi_v3", "qwen_fast"])
def test_a_new_policy_on_a_backbone_is_rebuilt_from_adapter_and_backbone(framework, tmp_path):
    """Its head is nowhere else; QwenFAST's new words are beyond the backbone's vocabulary."""
    source = base_vlm()
    shutil.copytree(source, tmp_path / "vlm")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source)
    config.get_text_config().vocab_size = 151700
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "vlm")
    model, processor = from_vlm(framework, tmp_path / "vlm")
    batch = batch_of(processor)
    model = adapted(model, tmp_path / "vlm", batch=batch)
    expected, loss = predicted(model, batch), model(**batch).loss
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(5)
    loaded = AutoModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(predicted(loaded, batch), expected)
    if framework == "qwen_fast":
        assert torch.equal(loaded(**batch).loss, loss)
        return
    cached_as(tmp_path / "cache", "some/vlm", tmp_path / "vlm")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "some/vlm"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    cached_as(tmp_path / "cache", "some/adapter", tmp_path / "adapter")
    assert torch.equal(
        predicted(AutoModel.from_pretrained("some/adapter", cache_dir=tmp_path / "cache"), batch), expected
    )
    shutil.rmtree(tmp_path / "cache" / "models--some--vlm")
    with pytest.raises(OSError, match="is an adapter of some/vlm, which can't be loaded"):
        AutoModel.from_pretrained("some/adapter", cache_dir=tmp_path / "cache")
    for name in ("projectors.0", "action_head.transformer"):
        with pytest.raises(ValueError, match="are new and would not be saved"):
            adapted(from_vlm(framework, tmp_path / "vlm")[0], tmp_path / "vlm", modules_to_save=[name], steps=0)


def test_native_base(reference, tmp_path):
    native = {"base_vlm": str(base_vlm())}
    run = reference.run_folder("QwenOFT")
    policy = AutoModel.from_pretrained(run, **native)
    shutil.copytree(run, tmp_path / "run")
    model = add_adapter(policy, PolicyArguments(policy=str(tmp_path / "run")), PeftArguments(use_peft=True))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    inputs = reference.case("QwenOFT", "a").model_inputs("predict")
    expected = model.eval().predict_action(**inputs)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "adapter").predict_action(**inputs), expected)
    assert not torch.allclose(reference.policy("QwenOFT").predict_action(**inputs), expected)


def test_the_loaded_policy_predicts_in_robot_units_and_has_an_untrained_twin(adapter):
    policy = Policy.from_pretrained(str(adapter), device="cpu")
    observation = {"image": [np.zeros((32, 32, 3), np.uint8)], "lang": "go", "state": np.zeros(2)}
    actions = policy.infer(observation)
    assert actions.shape == (4, 2) and not np.array_equal(policy.untrained().infer(observation), actions)


def test_a_moved_base_is_found_by_hand(adapter, base, tmp_path):
    moved = tmp_path / "far" / "from" / "there"
    shutil.copytree(adapter, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/policy"}))
    with pytest.raises(OSError, match="adapter of /gone/policy.*pass base_model="):
        AutoModel.from_pretrained(moved)
    policy = Policy.from_pretrained(str(moved), device="cpu", base_model=str(base("qwen_oft")))
    weights = AutoModel.from_pretrained(adapter).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in policy.model.state_dict().items())
    shutil.copytree(base("qwen_oft"), moved.parent / "base")
    (moved / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "../base"}))
    AutoModel.from_pretrained(moved)


def test_adapter_and_base_may_be_moved_together(base, tmp_path):
    shutil.copytree(base("qwen_oft"), tmp_path / "one" / "base")
    model = AutoModel.from_pretrained(tmp_path / "one" / "base")
    adapted(model, tmp_path / "one" / "base", steps=0).save_pretrained(tmp_path / "one" / "adapters" / "first")
    shutil.move(tmp_path / "one", tmp_path / "two")
    AutoModel.from_pretrained(tmp_path / "two" / "adapters" / "first")


def test_another_base_is_refused(adapter, base, tmp_path):
    with pytest.raises(ValueError, match="does not fit .*, which it names as its base"):
        AutoModel.from_pretrained(adapter, base_model=str(base("qwen_gr00t")))
    other = AutoModel.from_pretrained(base("qwen_oft"))
    with torch.no_grad():
        for parameter in other.vlm.parameters():
            parameter.mul_(1.05)
    other.save_pretrained(tmp_path / "trained-on")
    with pytest.raises(ValueError, match="is not the base that .* was trained on, though it has its shapes"):
        AutoModel.from_pretrained(adapter, base_model=str(tmp_path / "trained-on"))
    with pytest.raises(ValueError, match="is no adapter, so there is no base_model"):
        AutoModel.from_pretrained(base("qwen_oft"), base_model="anything")
    assert AutoModel.from_pretrained(adapter, dtype=torch.bfloat16).dtype == torch.bfloat16  # the base, rounded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(n for n in t if "lora_B" in n)), "1 missing keys: vlm"),
        (lambda t: t.pop(next(n for n in t if "action_head" in n)), "1 missing keys: action_head"),
        (lambda t: t.update({"base_model.model.extra.weight": torch.zeros(1)}), "1 unexpected keys: extra.weight"),
        (
            lambda t: t.update({n: x[:1] for n, x in t.items() if "fc2.bias" in n}),
            r"1 mismatched keys: .*fc2.bias \(1,\)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_raises(adapter, tmp_path, change, message):
    shutil.copytree(adapter, tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(tmp_path / "broken")


def test_an_incomplete_adapter_raises(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match="corrupt or incomplete"):
        AutoModel.from_pretrained(tmp_path / "broken")
    file.unlink()
    with pytest.raises(OSError, match="holds no adapter_model.safetensors"):
        AutoModel.from_pretrained(tmp_path / "broken")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_target_modules": ["q_prj"]}, "lora_target_modules: no module is called 'q_prj'; did you mean .*q_proj"),
        ({"lora_target_modules": ["self_attn"]}, "'self_attn' is not a linear layer but a .*Attention"),
        ({"lora_target_modules": ["fc1"]}, "'fc1' is in action_head.fc1, which modules_to_save trains in full"),
        ({"lora_target_modules": ["lm_head"]}, "lm_head holds the word embeddings"),
        ({"modules_to_save": ["action_model"]}, "modules_to_save: no module is called 'action_model'; did you mean action_head"),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens holds the word embeddings"),
    ],
)  # fmt: skip
def test_what_does_not_exist_or_can_not_be_adapted_is_named(base, settings, message):
    model = AutoModel.from_pretrained(base("qwen_oft"))
    with pytest.raises(ValueError, match=message):
        add_adapter(model, PolicyArguments(policy="p"), PeftArguments(use_peft=True, **settings))


def test_settings_reach_the_adapter(base):
    settings = {"lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.0, "use_rslora": True, "use_dora": True}
    settings |= {"lora_target_modules": ["q_proj", "attn.qkv"], "modules_to_save": ["action_head", "visual.merger"]}
    model = adapted(AutoModel.from_pretrained(base("qwen_gr00t")), base("qwen_gr00t"), steps=0, **settings)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_rslora, config.use_dora) == (3, 5, True, True)
    trained = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "merger" in name} and {name for name in trained if "qkv.lora_A" in name}
    assert not any("k_proj" in name for name in trained)
    everything = adapted(
        AutoModel.from_pretrained(base("qwen_gr00t")), base("qwen_gr00t"), 0, lora_target_modules=["all-linear"]
    )
    names = {plain_name(name) for name, _ in everything.named_parameters()}
    assert any("visual" in name and "lora_A" in name for name in names)
    assert not any(name.startswith("vlm.lm_head.lora") for name in names)
    of_head = {"lora_target_modules": ["q_proj", "to_q"], "modules_to_save": ["none"]}
    nothing = adapted(AutoModel.from_pretrained(base("qwen_gr00t")), base("qwen_gr00t"), 0, **of_head)
    trained = {plain_name(name) for name, p in nothing.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) and any(name.startswith("action_head") for name in trained)


def test_patterns_are_of_the_policys_own_names(base):
    model = adapted(AutoModel.from_pretrained(base("qwen_pi_v3")), base("qwen_pi_v3"), steps=0)
    groups = rate_groups(model, ["^action_head", r"^projectors\.0\.1\.weight$", r"^vlm.*lora_B"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert groups.keys() == trained
    for name, group in groups.items():
        plain = plain_name(name)
        projector = r"^projectors\.0\.1\.weight$" if plain == "projectors.0.1.weight" else "default"
        other = r"^vlm.*lora_B" if "lora_B" in plain else projector
        assert group == ("^action_head" if plain.startswith("action_head") else other), name
    freeze(model, ["^vlm"])
    left = {plain_name(name).split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert left == {"projectors", "action_head"}
    with pytest.raises(ValueError, match="did you mean action_head"):
        freeze(model, ["action_heat"])


def test_what_is_trained_is_float32_on_a_bfloat16_base(base):
    model = AutoModel.from_pretrained(base("qwen_dual"), dtype=torch.bfloat16)
    batch = batch_of(AutoProcessor.from_pretrained(base("qwen_dual")))
    model = adapted(model, base("qwen_dual"), batch=batch)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "base_layer" in n} == {torch.bfloat16}
    assert predicted(model, batch).isfinite().all()


# ------------------------------------------------------------------------------------------------- quantised backbones


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_backbone(base, bits, tmp_path):
    folder = base("qwen_pi_v3")
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.float32)
    policy = AutoModel.from_pretrained(folder, quantization_config=quantization)
    kind = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    quantised = {name for name, module in policy.named_modules() if type(module).__name__ == kind}
    assert "vlm.model.language_model.layers.0.self_attn.q_proj" in quantised
    assert all(name.startswith("vlm.model.") for name in quantised)
    processor = AutoProcessor.from_pretrained(folder)
    batch = batch_of(processor)
    model = adapted(policy, folder, batch=batch)
    model.save_pretrained(tmp_path / "adapter")
    expected = predicted(model, batch)
    assert expected.isfinite().all()
    processor.save_pretrained(tmp_path / "adapter")
    again = Policy.from_pretrained(str(tmp_path / "adapter"), device="cpu", quantization_config=quantization).model
    assert torch.allclose(predicted(again, batch), expected, atol=1e-4)
    with pytest.raises(ValueError, match="can't be merged into quantised weights"):
        merge(again)
    full = AutoModel.from_pretrained(tmp_path / "adapter")
    assert not getattr(full, "is_quantized", False)
    assert (predicted(full, batch) - expected).abs().max() < 0.1


def test_quantised_backbone_of_a_new_policy(tmp_path):
    shutil.copytree(base_vlm(), tmp_path / "vlm")
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base_vlm())).save_pretrained(tmp_path / "vlm")
    model, processor = from_vlm(
        "qwen_gr00t", tmp_path / "vlm", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    kinds = {type(m).__name__ for name, m in model.named_modules() if name.endswith("q_proj") and "vlm" in name}
    assert kinds == {"Linear8bitLt"}
    assert {type(m).__name__ for m in model.action_head.modules() if isinstance(m, torch.nn.Linear)} == {"Linear"}
    assert model(**batch_of(processor)).loss.isfinite()


def test_without_bitsandbytes(base, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(ImportError, match=r'pip install "hf_vla\[quantization\]"'):
        AutoModel.from_pretrained(base("qwen_oft"), quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_without_peft(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'needs peft: pip install "hf_vla\[peft\]"'):
        AutoModel.from_pretrained(adapter)


# ------------------------------------------------------------------------------------------------------------ training


def trainer_for(recipe, *flags) -> VLATrainer:
    types = (PolicyArguments, DataArguments, PeftArguments, VLATrainingArguments)
    (policy, data, peft, args), _ = parse_dataclasses(types, [str(recipe), *map(str, flags)])
    model, processor, dataset = build(policy, data, args.seed, **peft.loading_options(policy, args))
    if peft.use_peft:
        model = add_adapter(model, policy, peft)
    return VLATrainer(model, args, train_dataset=dataset, processing_class=processor)


@pytest.fixture
def lora_recipe(recipe, tmp_path) -> Path:
    """The tiny recipe from a policy of its own kind, by LoRA."""
    import yaml

    trainer_for(recipe).save_model(str(tmp_path / "base"))
    settings = yaml.safe_load(recipe.read_text()) | {"policy": str(tmp_path / "base"), "use_peft": True}
    settings = {n: v for n, v in settings.items() if n not in ("framework", "policy_config", "vlm_config")}
    file = tmp_path / "lora.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_run_resumes_from_an_adapter(lora_recipe, tmp_path):
    """Six steps, and six of which three after loading the third's checkpoint: the same to the bit, with dropout."""
    flags = ["--save_strategy", "steps", "--save_steps", 3, "--lora_dropout", "0.1", "--output_dir"]
    whole = trainer_for(lora_recipe, *flags, tmp_path / "whole")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert {"adapter_model.safetensors", "config.json", "processor_config.json"} <= {
        p.name for p in checkpoint.iterdir()
    }
    assert not (checkpoint / "model.safetensors").exists()
    resumed = trainer_for(lora_recipe, *flags, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    assert losses[0] == losses[1]
    resumed.save_model()
    policy = Policy.from_pretrained(str(tmp_path / "resumed"), device="cpu")
    assert policy.infer(whole.train_dataset[0]).shape == (4, 2)

    for option, message in (
        ("--lora_r", "belongs to another run"),
        ("--lora_alpha", "trained with lora_alpha 32, .* has 4"),
    ):
        other = trainer_for(lora_recipe, *flags, tmp_path / "x", option, 4)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=str(checkpoint))
    record = json.loads((checkpoint / "base.json").read_text())
    assert (checkpoint / record["relative_path"]).resolve() == tmp_path / "base"
    with pytest.raises(ValueError, match="holds no adapter; resume from a checkpoint of a run with use_peft"):
        whole.model.load_adapter(str(tmp_path / "base"), "default")
    with torch.no_grad():
        for parameter in resumed.model.get_base_model().vlm.model.visual.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ValueError, match="is not the base that"):
        resumed.model.load_adapter(str(checkpoint), "default")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_peft", "false", "--lora_r", "4", "--load_in_4bit"], "lora_r, load_in_4bit need use_peft"),
        (["--load_in_4bit", "--load_in_8bit"], "both set; keep one"),
        (["--lora_r", "0"], "the rank must be at least 1"),
        (["--pretrained_checkpoint", "somewhere"], "use_peft saves no base.*Set policy to somewhere"),
        (["--output_dir", "{base}"], "the base of the adapter; choose another folder"),
        (["--policy", "{adapter}"], "is an adapter, without its base.*merge"),
    ],
)
def test_bad_settings(lora_recipe, adapter, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(lora_recipe, *[flag.format(base=tmp_path / "base", adapter=adapter) for flag in flags])


def test_a_backbone_from_scratch_is_not_adapted(recipe):
    with pytest.raises(ValueError, match="vlm_config makes a backbone from scratch: set policy or base_vlm"):
        trainer_for(recipe, "--use_peft")


def test_pretrained_checkpoint_may_be_an_adapter(lora_recipe, tmp_path):
    first = trainer_for(lora_recipe, "--output_dir", tmp_path / "adapter", "--max_steps", 2)
    first.train()
    first.save_model()
    merged = merge(AutoModel.from_pretrained(tmp_path / "adapter")).state_dict()
    flags = ["--use_peft", "false", "--pretrained_checkpoint", tmp_path / "adapter", "--output_dir", tmp_path / "full"]
    model = trainer_for(lora_recipe, *flags).model
    assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())


def test_arguments_can_be_written_down():
    assert PeftArguments(**dataclasses.asdict(PeftArguments(use_peft=True, lora_r=2))).lora_r == 2
