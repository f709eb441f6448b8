"""Private names of transformers, accelerate and PEFT: those that are used are listed, exist, and are as they are used."""

import ast
import importlib
import inspect
from pathlib import Path

import peft
import pytest
import transformers
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import fsdp_utils
from transformers.integrations import deepspeed
from transformers.models.auto.processing_auto import processor_class_from_name

import hf_vla
from hf_vla.inference.pipeline import VisionLanguageActionPipeline
from hf_vla.modeling.configuration_vla import VLAConfig
from hf_vla.modeling.modeling_vla import VLAPreTrainedModel
from hf_vla.processing.processing_vla import VLAProcessor
from hf_vla.registry import class_of, frameworks
from hf_vla.training.lora import AdaptedPolicy
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.transformers_internals import (
    INTERNALS,
    attention_implementation,
    deepspeed_config,
    forget_weight_conversions,
    has_adapter,
    image_text_to_text_class,
    partial_optimizer_states,
    set_has_adapter,
    unregister_processor,
)

FOREIGN = ("transformers", "accelerate", "peft")
SUBCLASSES = [
    AdaptedPolicy,
    VisionLanguageActionPipeline,
    VLAConfig,
    VLAPreTrainedModel,
    VLAProcessor,
    VLATrainer,
    VLATrainingArguments,
    *(class_of(name, kind) for name in frameworks() for kind in ("config", "model", "processor")),
]
LISTED = {internal.name for internal in INTERNALS}


def found(owner: str):
    """The module or class of that dotted path."""
    module, _, name = owner.rpartition(".")
    return getattr(importlib.import_module(module), name) if name[0].isupper() else importlib.import_module(owner)


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.owner}.{internal.name}")
def test_what_is_listed_exists(internal):
    owner = found(internal.owner)
    remedy = (
        f"transformers {transformers.__version__} has no {internal.owner}.{internal.name} as hf_vla uses it "
        f"({internal.reason}). Find out what took its place, and change what uses it, or lower the upper bound of "
        f"transformers in pyproject.toml. It can go when {internal.until}."
    )
    if internal.parameters is None:
        # Attributes of instances and keyword arguments show in the source only.
        assert hasattr(owner, internal.name) or internal.name in inspect.getsource(owner), remedy
        return
    assert hasattr(owner, internal.name), remedy
    parameters = [name for name in inspect.signature(getattr(owner, internal.name)).parameters if name != "self"]
    if internal.parameters == ("args", "kwargs"):
        return  # handed on as they are
    assert tuple(parameters) == internal.parameters, f"{remedy} Its parameters are now {', '.join(parameters)}."


@pytest.mark.parametrize("cls", SUBCLASSES, ids=lambda cls: cls.__name__)
def test_private_names_that_subclasses_override_are_listed(cls):
    own, inherited = set(), set()
    for base in cls.__mro__:
        package = base.__module__.split(".")[0]
        target = own if package == "hf_vla" else inherited if package in FOREIGN else set()
        target |= {name for name in vars(base) if name.startswith("_") and not name.startswith(("__", "_abc_"))}
    assert own & inherited <= LISTED


def test_private_names_that_are_read_are_listed():
    """On `self`, those of the base classes; on other objects, also those of what is imported from these packages."""
    bases = [base for cls in SUBCLASSES for base in cls.__mro__ if base.__module__.split(".")[0] in FOREIGN]
    inherited = {name for base in bases for name in dir(base)}
    imported, on_self, elsewhere = set(), {}, {}
    for file in Path(hf_vla.__file__).parent.rglob("*.py"):
        if file.name == "transformers_internals.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                module = importlib.import_module(node.module)
                names = {alias.name for alias in node.names}
                imported |= names.union(*(dir(getattr(module, name, None)) for name in names))
                elsewhere |= {name: file.name for name in names}
            elif isinstance(node, ast.Attribute):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                (on_self if own else elsewhere)[node.attr] = file.name
    read = {name: file for name, file in on_self.items() if name in inherited}
    read |= {name: file for name, file in elsewhere.items() if name in inherited | imported}
    private = {name: file for name, file in read.items() if name.startswith("_") and not name.startswith("__")}
    assert {"_tr_loss", "_save_checkpoint"} & private.keys()  # the search finds something
    assert {f"{name} in {file}" for name, file in private.items() if name not in LISTED} == set()


def test_the_class_of_a_backbone():
    cls = image_text_to_text_class(transformers.Qwen3VLConfig())
    assert cls is transformers.Qwen3VLForConditionalGeneration
    assert image_text_to_text_class(transformers.BertConfig()) is None


def test_the_processor_that_is_registered_last_is_found():
    configs = [type("Config", (transformers.PreTrainedConfig,), {"model_type": f"again_{i}"}) for i in range(2)]
    processors = [type("RegisteredAgain", (VLAProcessor,), {}) for _ in range(2)]
    for config, processor in zip(configs, processors, strict=True):
        transformers.AutoProcessor.register(config, processor)
    assert processor_class_from_name("RegisteredAgain") is processors[0]
    unregister_processor(configs[0])
    assert processor_class_from_name("RegisteredAgain") is processors[1]
    unregister_processor(configs[1])
    assert processor_class_from_name("RegisteredAgain") is None


def test_the_deepspeed_configuration():
    assert deepspeed_config() is None

    class Settings:
        pass

    settings = Settings()
    deepspeed.set_hf_deepspeed_config(settings)
    try:
        assert deepspeed_config() is settings
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert deepspeed_config() is None


def test_partial_optimizer_states():
    def strict() -> bool:
        return fsdp_utils._prepare_sd_options(FullyShardedDataParallelPlugin(fsdp_version=2)).strict

    assert strict()
    with partial_optimizer_states():
        assert not strict()
    assert strict()


def test_what_transformers_notes_in_a_model(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=10
    )
    model = transformers.BertModel._from_config(config, attn_implementation="eager")
    assert attention_implementation(model.config) == "eager"
    assert not has_adapter(model)
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    assert has_adapter(model)
    set_has_adapter(model, False)
    assert not has_adapter(model)
    forget_weight_conversions(model)
    assert model._weight_conversions is None


def test_a_missing_name_says_what_to_do(monkeypatch):
    monkeypatch.delattr(deepspeed, "_hf_deepspeed_config_weak_ref")
    with pytest.raises(
        ImportError,
        match=r"transformers 5.* has no .*deepspeed\._hf_deepspeed_config_weak_ref, on which hf_vla relies",
    ):
        deepspeed_config()
