"""`hf-vla info`: what is here, what is missing, and plugins that do not load."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from reference_cases import base_vlm
from tiny_policies import build

from hf_vla import plugins
from hf_vla.commands import info
from hf_vla.commands.main import main
from hf_vla.registry import frameworks
from hf_vla.utils import extras as extras_module
from hf_vla.utils.extras import extras


def told(capsys, *arguments) -> dict[str, str]:
    """What is said, by the first word of each line."""
    assert main(["info", *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    return {line.strip().partition(" ")[0].removesuffix(":"): line for line in lines}


def test_versions_names_and_extras(capsys):
    lines = told(capsys)
    assert lines["hf_vla"].startswith("hf_vla 0.") and f"transformers {version('transformers')}" in lines["torch"]
    assert lines["frameworks"] == f"frameworks: {', '.join(frameworks())}"
    assert "metaworld" in lines["environments"] and "libero_franka" in lines["robots"]
    assert "quickstart" in lines["recipes"] and lines["launch"].endswith("zero3_offload")
    assert {"train", "sim", "server", "demo"} <= set(extras()) & set(lines)


def test_what_an_extra_lacks(capsys, monkeypatch):
    known = {"sim": {"no-such-simulator": ">=1", "numpy": "<1"}, "train": {"numpy": ""}}
    for module in (info, extras_module):
        monkeypatch.setattr(module, "extras", lambda: known)
    lines = told(capsys)
    lacks = f'lacks no-such-simulator, numpy <1 (there is {version("numpy")}): pip install "hf_vla[sim]"'
    assert lines["sim"].endswith(lacks) and lines["train"].split() == ["train", "installed"]


def test_a_plugin_that_does_not_load_is_told_beside_the_rest(capsys, monkeypatch, tmp_path):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("arm", "no_such_package.arm", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed_plugins", lambda: (broken,))
    monkeypatch.setattr(info, "installed_plugins", lambda: (broken,))
    monkeypatch.setattr(plugins, "_loaded", set())
    lines = told(capsys)
    assert lines["plugins"] == "plugins: arm (no_such_package.arm)"
    assert (
        "the plugin 'arm' (no_such_package.arm" in lines["the"] and "No module named 'no_such_package'" in lines["the"]
    )
    assert "frameworks" in lines


def test_user_code_is_known(capsys, tmp_path):
    file = tmp_path / "ponds_for_info.py"
    file.write_text("import json\n")
    assert "frameworks" in told(capsys, "--import", str(file))
    with pytest.raises(SystemExit) as ended:
        main(["info", "--import", str(tmp_path / "nowhere.py")])
    assert ended.value.code == 2 and "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["somewhere", "--unnorm-key", "a", "--device", "cpu"], "--unnorm-key, --device: for measuring a policy"),
        (["--precisions", "int8"], "--precisions is about a policy"),
    ],
)
def test_flags_for_measuring(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["info", *flags])
    said = capsys.readouterr()
    assert ended.value.code == 2 and message in said.err and not said.out


# ----------------------------------------------------------------- of a policy


def policy_facts(capsys, *arguments) -> dict[str, str]:
    """What is said of a policy: label -> text."""
    assert main(["info", *map(str, arguments)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)


@pytest.fixture
def native(reference, tmp_path):
    """A function that writes a native run of QwenPI_v3 without weights."""

    def write(mixture="libero_all", key="franka", interleave=True, **vla_data) -> Path:
        run = Path(shutil.copytree(reference.run_folder("QwenPI_v3"), tmp_path / "run"))
        (run / "checkpoints" / "steps_10_pytorch_model.pt").write_bytes(b"")  # it is not opened
        tree = yaml.safe_load((run / "config.full.yaml").read_text())
        vla = tree["datasets"]["vla_data"]
        vla |= {"data_mix": mixture, "obs_image_size": [224, 224], "include_state": False, **vla_data}
        tree["framework"]["action_model"]["diffusion_model_cfg"]["interleave_self_attention"] = interleave
        tree["framework"]["qwenvl"]["base_vlm"] = str(reference.base_vlm("QwenPI_v3"))
        (run / "config.full.yaml").write_text(yaml.safe_dump(tree))
        statistics = json.loads((run / "dataset_statistics.json").read_text())["oxe_bridge"]
        (run / "dataset_statistics.json").write_text(json.dumps({key: statistics}))
        return run

    return write


def test_of_a_native_policy(capsys, native, monkeypatch):
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    facts = policy_facts(capsys, native())
    assert facts["format"] == "StarVLA's native one" and facts["framework"] == "qwen_pi_v3 (StarVLA's QwenPI_v3)"
    assert facts["statistics franka"] == "robot type libero_franka: its mixture 'libero_all' is of 'libero_franka'"
    assert facts["actions"] == "min_max x 6, none"
    assert facts["cameras"] == "primary_image, wrist_image (in this order)"
    assert facts["state"] == "none: it was trained without"
    assert facts["horizon"] == "8 actions of 7 dimensions"
    assert facts["action names"] == "x, y, z, roll, pitch, yaw, gripper"
    assert "{instruction}" in facts["prompt"]
    assert facts["attention"].startswith(
        "odd blocks attend the action tokens (interleave_self_attention=True): its inter"
    )
    assert facts["attention"].endswith("undetermined")
    assert facts["images"] == "resized to 224x224"
    assert (
        facts["tokens per view"] == "49, of 224x224, seen as 224x224 pixels"
    )  # the tiny processor's minimum is smaller
    assert facts["weights"] == "checkpoints/steps_10_pytorch_model.pt"


def test_what_is_not_known_is_said(capsys, native):
    run = native("my_mixture", interleave=False, include_state=True)
    facts = policy_facts(capsys, run)
    assert facts["statistics franka"] == "robot type not known: its mixture 'my_mixture' is not known"
    assert facts["cameras"] == "not known" and "robot_type=" in facts["actions"]
    assert facts["state"] == "needed, 8 dimensions, as text in the prompt"
    assert facts["attention"].endswith("its interleave_self_attention is false")
    named = policy_facts(capsys, run, "--robot-type", "vla_arena_franka")
    assert named["statistics franka"] == "robot type vla_arena_franka: as robot_type says"
    without = policy_facts(capsys, run, "--base-vlm", "no/such")
    assert "no/such, which can't be loaded" in without["backbone"] and "not known" in without["tokens per view"]


def test_of_a_saved_policy(capsys, tmp_path):
    policy = build("qwen_oft")
    policy.model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    facts = policy_facts(capsys, tmp_path)
    assert (facts["format"], facts["framework"]) == ("hf_vla's", "qwen_oft") and facts["actions"] == "min_max"
    assert facts["statistics arm"] == "robot type not known: as saved"
    assert facts["weights"].startswith("model.safetensors, ") and "attention" not in facts
    assert facts["horizon"] == "3 actions of 2 dimensions"
    assert facts["images"] == "not resized; the size it was trained with is not known"


def test_of_what_is_not_a_policy(capsys, tmp_path, reference_datasets):
    build("qwen_oft").model.save_pretrained(tmp_path / "run" / "policy")
    cases = {
        base_vlm(): "'qwen3_vl' model, a backbone of the family Qwen3-VL, not a policy",
        reference_datasets / "v21_video": "is a dataset, not a policy: hf-vla inspect",
        tmp_path / "run": f"it holds {tmp_path / 'run' / 'policy'}: name one of these",
        tmp_path / "nowhere": "no such folder",
    }
    for given, message in cases.items():
        with pytest.raises(SystemExit) as ended:
            main(["info", str(given)])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert ended.value.code == 2 and len(lines) == 1 and message in lines[0]
