"""Native StarVLA repositories through the Auto classes: folders, Hub caches, conversion, and everything that is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

import hf_vla
from hf_vla.checkpoints import open_checkpoint
from hf_vla.checkpoints.starvla_writer import save_repository

VARIANT = "QwenPI_v3"
FILE = "checkpoints/steps_10_pytorch_model.pt"


@pytest.fixture(scope="session")
def base_vlm(reference) -> str:
    return str(reference.base_vlm(VARIANT))


@pytest.fixture(scope="session")
def pristine_run(reference) -> Path:
    """The recorded variant as StarVLA's trainer leaves it."""
    return reference.run_folder(VARIANT)


@pytest.fixture
def run(pristine_run, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine_run, tmp_path / "run"))


def edit_weights(run: Path, edit) -> None:
    tensors = torch.load(run / FILE)
    edit(tensors)
    torch.save(tensors, run / FILE)


def edit_config(run: Path, edit) -> None:
    import yaml

    tree = yaml.safe_load((run / "config.full.yaml").read_text())
    edit(tree)
    (run / "config.full.yaml").write_text(yaml.safe_dump(tree))


# ------------------------------------------------------------------ loading


def test_auto_classes_read_a_native_folder(pristine_run, base_vlm):
    config = AutoConfig.from_pretrained(pristine_run, base_vlm=base_vlm)
    assert isinstance(config, hf_vla.QwenPIV3Config)
    assert (config.action_dim, config.action_horizon, config.action_hidden_size) == (7, 8, 48)
    assert config.repeated_diffusion_steps == 16  # not framework.action_model.repeated_diffusion_steps, which is 8
    assert config.hidden_states_convention == "transformers-4.57"
    model = AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm)
    assert isinstance(model, hf_vla.QwenPIV3ForActionPrediction) and not model.training
    processor = AutoProcessor.from_pretrained(pristine_run, base_vlm=base_vlm)
    assert isinstance(processor, hf_vla.QwenPIV3Processor)
    assert set(processor.statistics) == set(json.loads((pristine_run / "dataset_statistics.json").read_text()))
    assert processor.image_size == [96, 64] and "{instruction}" in processor.prompt_template


@pytest.mark.parametrize("template", ["", "Do {Task}"])
def test_a_prompt_without_the_instruction_stays_as_it_was_trained(run, base_vlm, caplog, template):
    """StarVLA wraps with an empty template too. The policy has never seen another prompt."""
    edit_config(run, lambda tree: tree["datasets"]["vla_data"].update(CoT_prompt=template))
    processor = AutoProcessor.from_pretrained(run, base_vlm=base_vlm)
    assert processor.prompt_template == template and "was trained with it, and keeps it" in caplog.text
    told = AutoProcessor.from_pretrained(run, base_vlm=base_vlm, prompt_template="{instruction}")
    assert told.prompt_template == "{instruction}"


def test_concrete_classes_read_it_too(pristine_run, base_vlm, tmp_path):
    assert hf_vla.QwenPIV3Config.from_pretrained(pristine_run, base_vlm=base_vlm).action_hidden_size == 48
    model = hf_vla.QwenPIV3ForActionPrediction.from_pretrained(pristine_run, base_vlm=base_vlm)
    assert model.config.action_hidden_size == 48
    assert hf_vla.QwenPIV3Processor.from_pretrained(pristine_run, base_vlm=base_vlm).image_size == [96, 64]
    with pytest.raises(ValueError, match="holds a QwenPI_v3 policy"):
        hf_vla.QwenOFTConfig.from_pretrained(pristine_run, base_vlm=base_vlm)
    with pytest.raises(OSError, match="no config.json"):
        hf_vla.QwenPIV3Config.from_pretrained(tmp_path)


def test_config_yaml_is_enough(run, base_vlm):
    (run / "config.full.yaml").unlink()
    assert AutoConfig.from_pretrained(run, base_vlm=base_vlm).action_hidden_size == 48


@pytest.mark.parametrize(
    ("edit", "field", "expected"),
    [
        (lambda d, a: d.pop("action_dit_hidden_dim"), "action_hidden_size", 1024),
        (lambda d, a: d.update(action_dit_hidden_dim=None), "action_hidden_size", None),
        (lambda d, a: d.update(interleave_self_attention=True), "interleave_self_attention", True),
        (lambda d, a: d.pop("interleave_self_attention"), "interleave_self_attention", False),
        (
            lambda d, a: d.update(interleave_self_attention=True, use_canonical_forward=False),
            "interleave_self_attention",
            False,
        ),
        (
            lambda d, a: d.update(interleave_self_attention=False, use_canonical_forward=None),
            "interleave_self_attention",
            False,
        ),
        (lambda d, a: a.pop("action_horizon"), "action_horizon", 8),  # future_action_window_size 7
        (lambda d, a: (d.pop("output_dim"), a.update(hidden_size=1024)), "output_dim", 1024),
        (lambda d, a: d.pop("output_dim"), "output_dim", 26),
    ],
)
def test_config_variants(run, base_vlm, edit, field, expected):
    def edit_tree(tree):
        action_model = tree["framework"]["action_model"]
        edit(action_model["diffusion_model_cfg"], action_model)

    edit_config(run, edit_tree)
    assert getattr(AutoConfig.from_pretrained(run, base_vlm=base_vlm), field) == expected


class TestInterleave:
    """Layer-wise checkpoints from before 2026-06-16 attend the backbone in every block, whatever their YAML says."""

    @pytest.fixture
    def flagged(self, run):
        """The run of a configuration that says to interleave."""

        def make(name: str = "run", **diffusion) -> Path:
            edit_config(
                run,
                lambda t: t["framework"]["action_model"]["diffusion_model_cfg"].update(
                    {"interleave_self_attention": True, "use_canonical_forward": None} | diffusion
                ),
            )
            return run.rename(run.with_name(name))

        return make

    @pytest.fixture
    def warnings(self, monkeypatch) -> list[str]:
        told = []
        monkeypatch.setattr("hf_vla.checkpoints.starvla.logger.warning_once", told.append)
        return told

    def test_the_flag_alone_is_believed_and_both_possibilities_are_told(self, flagged, base_vlm, warnings):
        assert AutoConfig.from_pretrained(flagged(), base_vlm=base_vlm).interleave_self_attention
        assert "interleave_self_attention=False" in warnings[0] and "2026-06-16" in warnings[0]

    @pytest.mark.parametrize("choice", [False, True])
    def test_the_caller_decides(self, flagged, base_vlm, warnings, choice):
        folder = flagged("Qwen-FM-Bridge-RT-1")
        model = AutoModel.from_pretrained(folder, base_vlm=base_vlm, interleave_self_attention=choice)
        assert model.config.interleave_self_attention is choice and not warnings
        assert model.action_head.transformer.interleave_self_attention is choice

    @pytest.mark.parametrize("name", ["interleave_self_attention", "use_canonical_forward"])
    @pytest.mark.parametrize("value", ["x", 1])
    def test_a_flag_is_true_or_false(self, flagged, base_vlm, name, value):
        with pytest.raises(OSError, match=f"diffusion_model_cfg.{name} is {value!r}; it must be true or false"):
            AutoConfig.from_pretrained(flagged(**{name: value}), base_vlm=base_vlm)

    @pytest.mark.parametrize("canonical", [False, True])
    def test_canonical_forward_counts_before_the_table(self, flagged, base_vlm, warnings, canonical):
        folder = flagged("Qwen-FM-Bridge-RT-1", use_canonical_forward=canonical)
        assert AutoConfig.from_pretrained(folder, base_vlm=base_vlm).interleave_self_attention is canonical
        assert not warnings

    @pytest.mark.parametrize(
        ("repository", "trained"),
        [
            ("StarVLA/Qwen-FM-Bridge-RT-1", False),
            ("StarVLA/Qwen3VL-PI_v3-Bridge-RT-1", False),
            ("StarVLA/Qwen3-VL-PI-LIBERO-4in1", False),
            ("StarVLA/StarVLA-Qwen3vl4b-PIv3-RoboDojo", True),
            ("robotcpp/starvla-qwen3-pi-v3-bridge-bf16", False),
        ],
    )
    @pytest.mark.parametrize("flag", [False, True])
    def test_released_repositories(self, flagged, base_vlm, warnings, monkeypatch, repository, trained, flag):
        """By the name on the Hub, whose files are taken from the folder; and by the folder's own."""
        folder = flagged(interleave_self_attention=flag)
        checkpoint = open_checkpoint(folder, base_vlm=base_vlm)
        monkeypatch.setattr(checkpoint.files, "name", repository)
        checkpoint.tree  # noqa: B018 - read while the files are still a folder's
        monkeypatch.setattr(checkpoint.files, "folder", None)
        monkeypatch.setattr(checkpoint.files, "hub", {})
        assert checkpoint.config().interleave_self_attention is trained
        assert bool(warnings) == (flag != trained)
        named = folder.rename(folder.with_name(repository.split("/")[1]))
        assert AutoConfig.from_pretrained(named, base_vlm=base_vlm).interleave_self_attention is trained

    def test_what_was_decided_is_kept(self, flagged, base_vlm, tmp_path):
        config = AutoConfig.from_pretrained(flagged("Qwen-FM-Bridge-RT-1"), base_vlm=base_vlm)
        config.save_pretrained(tmp_path / "ours")
        assert not AutoConfig.from_pretrained(tmp_path / "ours").interleave_self_attention


def test_null_width_means_the_backbones_and_no_projectors(run, base_vlm):
    edit_config(
        run, lambda t: t["framework"]["action_model"]["diffusion_model_cfg"].update(action_dit_hidden_dim=None)
    )
    model = hf_vla.QwenPIV3ForActionPrediction(AutoConfig.from_pretrained(run, base_vlm=base_vlm))
    assert not list(model.projectors.parameters())
    assert model.action_head.action_encoder.layer1.out_features == model.config.vlm_hidden_size


def test_highest_step_or_the_one_asked_for(run, base_vlm):
    later = run / "checkpoints" / "steps_200_pytorch_model.pt"
    shutil.copy(run / FILE, later)
    assert open_checkpoint(run).weights_file() == later
    assert open_checkpoint(run, checkpoint="steps_10_pytorch_model.pt").weights_file() == run / FILE
    with pytest.raises(OSError, match="steps_10_pytorch_model.pt, checkpoints/steps_200"):
        open_checkpoint(run, checkpoint="steps_30_pytorch_model.pt").weights_file()


def test_a_file_is_looked_for_in_the_repository_first(run, tmp_path, monkeypatch, caplog):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = "steps_10_pytorch_model.pt"
    shutil.copy(run / FILE, elsewhere / name)
    shutil.copy(run / FILE, elsewhere / "other.pt")
    monkeypatch.chdir(elsewhere)
    for chosen, expected in ((name, run / FILE), (None, run / FILE), ("other.pt", Path("other.pt"))):
        for _ in range(2):  # every load says which
            caplog.clear()
            assert open_checkpoint(run, checkpoint=chosen).weights_file() == expected
            assert f"{run}: loading {FILE if expected == run / FILE else 'other.pt'}" in caplog.text


def test_safetensors_checkpoint(run, base_vlm):
    from safetensors.torch import save_file

    tensors = {name: tensor.clone() for name, tensor in torch.load(run / FILE).items()}
    save_file(tensors, run / "checkpoints" / "steps_11_model.safetensors")
    (run / FILE).unlink()
    model = AutoModel.from_pretrained(run, base_vlm=base_vlm)
    name = "action_head.action_decoder.layer2.weight"
    assert torch.equal(model.state_dict()[name], tensors["action_model.action_decoder.layer2.weight"])


def test_final_model(run, base_vlm):
    (run / "final_model").mkdir()
    (run / FILE).rename(run / "final_model" / "pytorch_model.pt")
    assert AutoModel.from_pretrained(run, base_vlm=base_vlm).num_parameters() > 0


def test_unknown_robot_needs_modes(run, base_vlm):
    statistics = json.loads((run / "dataset_statistics.json").read_text())
    (run / "dataset_statistics.json").write_text(json.dumps({"my_robot": statistics["oxe_bridge"]}))
    processor = AutoProcessor.from_pretrained(run, base_vlm=base_vlm)
    with pytest.raises(ValueError, match="normalization_modes"):
        processor.unnormalize_actions(torch.zeros(1, 8, 7))
    modes = {"my_robot": {"action": "min_max", "state": "min_max"}}
    processor = AutoProcessor.from_pretrained(run, base_vlm=base_vlm, normalization_modes=modes)
    low, high = (torch.tensor(statistics["oxe_bridge"]["action"][k]) for k in ("min", "max"))
    actions = processor.unnormalize_actions(torch.zeros(1, 8, 7))
    assert torch.allclose(torch.from_numpy(actions[0, 0]), (low + high) / 2, atol=1e-6)


def test_a_checkpoint_is_opened_once_and_handed_on(pristine_run, base_vlm, monkeypatch):
    from hf_vla.checkpoints import checkpoint as module

    opened = []
    original = module.Files.__init__
    monkeypatch.setattr(
        module.Files, "__init__", lambda self, name, **hub: (opened.append(str(name)), original(self, name, **hub))[0]
    )
    policy = hf_vla.Policy.from_pretrained(str(pristine_run), "oxe_bridge", base_vlm=base_vlm)
    assert isinstance(policy.model, hf_vla.QwenPIV3ForActionPrediction) and opened == [str(pristine_run)]

    opened.clear()
    checkpoint = open_checkpoint(pristine_run, base_vlm=base_vlm)
    assert (checkpoint.is_native, checkpoint.model_type) == (True, "qwen_pi_v3")
    config = hf_vla.QwenPIV3Config.from_pretrained(checkpoint)
    model = hf_vla.QwenPIV3ForActionPrediction.from_pretrained(checkpoint, config=config)
    assert AutoProcessor.from_pretrained(checkpoint).image_size == [96, 64]
    assert model.config.action_hidden_size == 48 and opened == [str(pristine_run)]


def test_loading_again_from_an_open_checkpoint_shares_nothing(pristine_run, base_vlm):
    checkpoint = open_checkpoint(pristine_run, base_vlm=base_vlm)
    first, second = (hf_vla.QwenPIV3Config.from_pretrained(checkpoint) for _ in range(2))
    first.vlm_config.text_config.hidden_size = 1
    assert second.vlm_config.text_config.hidden_size == 64


# ------------------------------------------------------------ from the Hub


def lay_out_cache(cache: Path, repository: str, source: Path) -> None:
    """A folder as huggingface_hub would have cached the repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(source, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


LOAD = """
import sys, hf_vla, torch
from transformers import AutoModel, AutoProcessor
for asked in sys.argv[1:]:
    print("asked for", asked, file=sys.stderr)
    policy = AutoModel.from_pretrained(asked, dtype="auto")
    processor = AutoProcessor.from_pretrained(asked)
    print(type(policy).__name__, policy.config.vlm_name_or_path, sorted(processor.statistics))
"""


@pytest.mark.slow
def test_released_names_load_offline_from_a_hub_cache(pristine_run, base_vlm, tmp_path):
    """In a process of its own, as the cache's place is read at import. Both spellings of a name find the repository.

    For the repository that has the other spelling, and for all the others, see test_released.py.
    """
    names = ["StarVLA/Qwen3VL-PI_v3-Bridge-RT-1", "StarVLA/Qwen3VL-PI_v3-Bridge-RT_1"]
    cached = names[0]
    lay_out_cache(tmp_path, cached, pristine_run)
    lay_out_cache(tmp_path, "Qwen/Qwen3-VL-4B-Instruct", Path(base_vlm))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *names], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = "QwenPIV3ForActionPrediction Qwen/Qwen3-VL-4B-Instruct ['oxe_bridge', 'oxe_rt1']"
    assert result.stdout.splitlines() == [loaded, loaded]
    for asked, log in zip(names, result.stderr.split("asked for ")[1:], strict=True):
        assert (f"loading {cached}" in log) == (asked != cached)


# --------------------------------------------------------------- conversion


def test_native_to_ours_and_back_keeps_every_tensor(pristine_run, base_vlm, tmp_path):
    model = AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm)
    processor = AutoProcessor.from_pretrained(pristine_run, base_vlm=base_vlm)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    save_repository(
        AutoModel.from_pretrained(tmp_path / "ours"),
        AutoProcessor.from_pretrained(tmp_path / "ours"),
        tmp_path / "back",
        10,
    )
    before, after = torch.load(pristine_run / FILE), torch.load(tmp_path / "back" / FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (AutoConfig.from_pretrained(x, base_vlm=base_vlm) for x in (pristine_run, tmp_path / "back"))
    assert first.to_diff_dict() == second.to_diff_dict()
    assert AutoProcessor.from_pretrained(tmp_path / "back", base_vlm=base_vlm).to_dict() == processor.to_dict()


def test_no_path_of_this_machine_is_saved(pristine_run, base_vlm, tmp_path):
    AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm).save_pretrained(tmp_path)
    assert base_vlm not in (tmp_path / "config.json").read_text()


# ----------------------------------------------------------------- bad input


def truncate(run: Path) -> None:
    content = (run / FILE).read_bytes()
    (run / FILE).write_bytes(content[: len(content) // 2])


def remove_configs(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "config.full.yaml").unlink()


@pytest.mark.parametrize(
    ("breakage", "error", "message"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), OSError, "holds no checkpoint"),
        (remove_configs, OSError, "neither config.full.yaml nor config.yaml"),
        (truncate, OSError, "corrupt or incomplete"),
        (lambda run: (run / FILE).write_bytes(b"no checkpoint"), OSError, "corrupt or incomplete"),
        (lambda run: (run / FILE).write_bytes(b""), OSError, "corrupt or incomplete"),
        (lambda run: torch.save([1, 2], run / FILE), OSError, "not a state dict"),
        (
            lambda run: edit_weights(run, lambda t: t.pop("project_layers.0.1.weight")),
            ValueError,
            "1 missing keys: projectors.0.1.weight",
        ),
        (
            lambda run: edit_weights(run, lambda t: t.update({"project_layers.0.1.weight": torch.zeros(3, 3)})),
            ValueError,
            r"projectors.0.1.weight \(3, 3\) instead of \(48, 64\)",
        ),
        (
            lambda run: edit_weights(run, lambda t: t.update({"stray.weight": torch.zeros(2)})),
            ValueError,
            "1 unexpected keys: stray.weight",
        ),
        (
            lambda run: edit_config(run, lambda t: t["framework"].update(name="QwenUnheardOf")),
            OSError,
            "known are .*QwenPI_v3",
        ),
        (lambda run: (run / "config.full.yaml").write_text("framework: [1"), OSError, "not valid YAML"),
        *(
            (lambda run, edit=edit: edit_config(run, edit), OSError, message)
            for edit, message in (
                (lambda t: t["framework"].update(action_model=None), "framework.action_model is None .* a mapping"),
                (lambda t: t["framework"].update(name=["QwenPI"]), "names the framework .*known are"),
                (lambda t: t["framework"]["qwenvl"].update(base_vlm=5), "base_vlm is 5 in .* a path or repository"),
                (lambda t: t["framework"]["action_model"].update(action_dim="x"), "can't be read: invalid literal"),
                (lambda t: t["framework"]["action_model"].update(action_dim=[7]), "can't be read: int"),
                (lambda t: t["datasets"]["vla_data"].update(obs_image_size=224), "obs_image_size is 224 .*width"),
                (lambda t: t["datasets"]["vla_data"].update(obs_image_size=[224]), r"obs_image_size is \[224\]"),
                (lambda t: t["datasets"]["vla_data"].update(CoT_prompt=[]), r"CoT_prompt is \[\] .* a text"),
            )
        ),
    ],
)
def test_broken_repositories_raise(run, base_vlm, breakage, error, message):
    breakage(run)
    with pytest.raises(error, match=message):
        AutoModel.from_pretrained(run, base_vlm=base_vlm)


def test_auto_processor_says_what_is_wrong(run, base_vlm):
    edit_config(run, lambda t: t["framework"].update(name="QwenUnheardOf"))
    with pytest.raises(OSError, match="known are .*QwenPI_v3"):
        AutoProcessor.from_pretrained(run, base_vlm=base_vlm)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[1, 2]", OSError, r"dataset_statistics.json makes no sense: it holds \[1, 2\] instead of an object"),
        ('{"oxe_bridge": [1]}', ValueError, "statistics of 'oxe_bridge' are"),
        ('{"oxe_bridge": {"action": {"mask": [true]}}}', ValueError, "are empty"),
        ("{", OSError, "not valid JSON"),
    ],
)
def test_malformed_statistics_raise(run, base_vlm, content, error, message):
    (run / "dataset_statistics.json").write_text(content)
    with pytest.raises(error, match=message):
        AutoProcessor.from_pretrained(run, base_vlm=base_vlm)


def test_overrides_of_native_processors(pristine_run, base_vlm):
    load = AutoProcessor.from_pretrained
    assert load(pristine_run, base_vlm=base_vlm, image_size=[32, 32]).image_size == [32, 32]
    size = {"shortest_edge": 1024, "longest_edge": 4096}
    assert dict(load(pristine_run, base_vlm=base_vlm, size=size).image_processor.size) == size
    for wrong, message in (
        ({"imagesize": [3, 3]}, "did you mean image_size"),
        ({"image_size": [0, 3]}, "image_size is"),
    ):
        with pytest.raises(ValueError, match=message):
            load(pristine_run, base_vlm=base_vlm, **wrong)


def test_missing_statistics_raise(run, base_vlm):
    (run / "dataset_statistics.json").unlink()
    with pytest.raises(OSError, match="dataset_statistics.json"):
        AutoProcessor.from_pretrained(run, base_vlm=base_vlm)


def test_unreachable_backbone_says_what_to_pass(pristine_run):
    with pytest.raises(OSError, match="pass base_vlm="):
        AutoModel.from_pretrained(pristine_run, base_vlm="no/such/place")


@pytest.mark.parametrize("kind", ["missing", "shape", "truncated"])
def test_own_format_loads_whole_or_not_at_all(pristine_run, base_vlm, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        tensors = load_file(file)
        weight = tensors.pop("projectors.0.1.weight")
        if kind == "shape":
            tensors["projectors.0.1.weight"] = weight[:3].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises((ValueError, OSError), match="projectors.0.1.weight" if kind != "truncated" else "corrupt"):
        AutoModel.from_pretrained(tmp_path)


def test_the_folder_of_a_training_that_has_not_finished(tmp_path):
    (tmp_path / "config.yaml").write_text("framework: qwen_oft\n")
    with pytest.raises(OSError, match="names no framework as StarVLA's .* the training in it has not finished"):
        AutoConfig.from_pretrained(tmp_path)


def test_concrete_classes_refuse_another_framework(pristine_run, base_vlm, tmp_path):
    AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(pristine_run, base_vlm=base_vlm).save_pretrained(tmp_path)
    for wrong in (hf_vla.QwenPIForActionPrediction, hf_vla.QwenPIConfig):
        with pytest.raises(ValueError, match="model_type 'qwen_pi_v3', QwenPIConfig is 'qwen_pi'"):
            wrong.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a QwenPIV3Processor, not a QwenPIProcessor"):
        hf_vla.QwenPIProcessor.from_pretrained(tmp_path)

    class MyConfig(hf_vla.QwenPIV3Config):
        model_type = "my_pi_v3"

    assert type(MyConfig.from_pretrained(tmp_path)) is MyConfig
    assert hf_vla.QwenPIV3ForActionPrediction.from_pretrained(tmp_path).config.model_type == "qwen_pi_v3"


def test_native_arguments_are_refused_elsewhere(pristine_run, base_vlm, tmp_path):
    AutoModel.from_pretrained(pristine_run, base_vlm=base_vlm).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a native StarVLA checkpoint"):
        AutoModel.from_pretrained(tmp_path, base_vlm=base_vlm)


def test_other_repositories_load_as_ever(base_vlm, tmp_path):
    assert AutoConfig.from_pretrained(base_vlm).model_type == "qwen3_vl"
    with pytest.raises((OSError, ValueError)) as with_us:
        AutoConfig.from_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path)!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(with_us.value).splitlines()[0] in result.stderr
