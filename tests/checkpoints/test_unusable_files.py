"""Files of a policy that make no sense are one error, which names the file."""

import json
import shutil

import pytest
from tiny_policies import build
from transformers import AutoConfig, AutoModel, AutoProcessor

from hf_vla import Policy

CONFIG, PROCESSOR = "config.json", "processor_config.json"
DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "saved"
    policy = build("qwen_gr00t")
    policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the policy that may be damaged; the weights are not copied."""
    copy = shutil.copytree(saved, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(saved / "model.safetensors")
    return copy


def changed(file, name, value):
    """Return the file's text with one of its entries, "a.b", replaced."""
    content = json.loads(file.read_text())
    *path, last = name.split(".")
    place = content
    for part in path:
        place = place[part]
    place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '"x"', "3", "NaN", "{", "\ufeff\x00", DEEP], ids=lambda text: text[:5]
)
@pytest.mark.parametrize("name", [CONFIG, PROCESSOR, "tokenizer_config.json", "tokenizer.json"])
def test_files_that_are_no_objects(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises((OSError, ValueError), match=name):
        Policy.from_pretrained(str(folder), device="cpu")


def test_a_tokenizer_without_contents(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(OSError, match=r"tokenizer.json, or the files beside it, make no tokenizer"):
        AutoProcessor.from_pretrained(folder)


VALUES = [None, [], {}, "x", -1, 1e30, [[]]]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("action_dim", [*VALUES, 0, 1.5, True, "7", 10**9]),
        ("action_horizon", ["x", 10**9]),
        ("action_hidden_size", ["x", 0]),
        ("output_dim", [0, -1]),
        ("num_action_layers", [None, 1.5]),
        ("dropout", [[], "0.1", float("nan")]),
        ("interleave_self_attention", ["yes", 3]),
        ("hidden_states_convention", [3, None]),
        ("dtype", ["float33", 3]),
        ("model_type", [None, [], {}, 3]),
        ("vlm_config", [None, [], {}, "x", {"model_type": []}, {"model_type": "qwen3_vl", "text_config": "x"}]),
        ("vlm_config.text_config", [None, {}, {"no_such_field": 1}, {"model_type": "qwen3_vl_text"}]),
        ("vlm_config.vision_config", [None, {}]),
        ("vlm_config.model_type", [None, 3, "no_such_model"]),
        ("vlm_config.text_config.hidden_size", ["x", None, [], -1, 0]),
        ("vlm_config.text_config.num_hidden_layers", ["2", []]),
        ("vlm_config.text_config.rope_parameters", ["x", 3]),
    ],
)
def test_values_of_a_configuration(folder, field, values):
    good = (folder / CONFIG).read_text()
    for value in values:
        (folder / CONFIG).write_text(good)
        (folder / CONFIG).write_text(changed(folder / CONFIG, field, value))
        with pytest.raises((OSError, ValueError)) as raised:
            Policy.from_pretrained(str(folder), device="cpu")
        assert CONFIG in str(raised.value), (value, str(raised.value))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("action_dim", ["x", [], -1, 1.5, True]),
        ("processor_class", [[], {}, 3, "NoSuchProcessor"]),
        ("image_processor", [[], "x", 3]),
        ("statistics", ["x", {"arm": None}, {"arm": {"action": 3}}]),
        ("image_size", ["x", 3, [1], [0, 0]]),
        ("prompt_template", [3, []]),
        ("normalization_modes", ["x", {"arm": 3}]),
        ("action_names", ["x", {"arm": 3}]),
        ("input_contract", ["x", {"arm": 3}]),
    ],
)
def test_values_of_a_processor(folder, field, values):
    good = (folder / PROCESSOR).read_text()
    for value in values:
        (folder / PROCESSOR).write_text(good)
        (folder / PROCESSOR).write_text(changed(folder / PROCESSOR, field, value))
        with pytest.raises((OSError, ValueError)) as raised:
            AutoProcessor.from_pretrained(folder)
        assert PROCESSOR in str(raised.value), (value, str(raised.value))


@pytest.mark.parametrize("load", [AutoConfig, AutoModel])
def test_every_way_to_load_names_the_file(folder, load):
    (folder / CONFIG).write_text(changed(folder / CONFIG, "action_dim", "seven"))
    with pytest.raises(
        (OSError, ValueError), match=r"config.json makes no sense: action_dim is 'seven'; .* a whole number"
    ):
        load.from_pretrained(folder)


def test_a_sound_policy_and_wrong_arguments_are_not_blamed_on_files(saved):
    assert Policy.from_pretrained(str(saved), device="cpu").action_horizon
    with pytest.raises(TypeError, match="no_such_argument"):
        AutoModel.from_pretrained(saved, no_such_argument=3)
