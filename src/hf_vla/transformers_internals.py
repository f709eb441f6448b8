"""The private names of transformers, accelerate and PEFT that this package relies on, each with the reason.

Other modules use the functions below instead of a private name. Names that can't be wrapped, because a subclass overrides them
or transformers passes them as keyword arguments, are in `INTERNALS`. `tests/test_transformers_internals.py` checks all of them
in the installed versions, and that no other private name is used: run it before the upper bound of a dependency is raised.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple


class Internal(NamedTuple):
    """A private name that is used elsewhere in this package.

    Attributes:
        owner: dotted path of the class or module that has it.
        name: the private name.
        reason: what it is used for.
        until: when it can go.
        parameters: of a method, names of the parameters that calls and overrides rely on; None for an attribute or keyword.
    """

    owner: str
    name: str
    reason: str
    until: str
    parameters: tuple[str, ...] | None = None


_TRAINER = "transformers.trainer.Trainer"
_MODEL = "transformers.modeling_utils.PreTrainedModel"
_PIPELINE = "transformers.pipelines.base.Pipeline"
_CHECKPOINTS = "the Trainer writes checkpoints whole or not at all"
_MODEL_API = "transformers has a public name for it; it documents this one for models outside of the library"
_PIPELINE_API = "transformers has a public name for it; it documents this one for pipelines outside of the library"

INTERNALS = (
    # training/resuming.py: exact resuming
    Internal(_TRAINER, "_get_train_sampler", "a mixture is read in order and in whole global batches",
             "the Trainer takes a sampler as an argument", ("train_dataset",)),
    Internal(_TRAINER, "_get_dataloader", "the loader's seed is not drawn from torch's global generator",
             "the Trainer seeds loaders apart from the model", ("args", "kwargs")),
    Internal(_TRAINER, "_get_output_dir", "a checkpoint is written beside its final place first", _CHECKPOINTS, ("trial",)),
    Internal(_TRAINER, "_save_checkpoint", "a checkpoint is renamed when all processes have written it", _CHECKPOINTS,
             ("model", "trial")),
    Internal(_TRAINER, "_push_from_checkpoint", "a checkpoint is uploaded from its final place", _CHECKPOINTS,
             ("checkpoint_folder",)),
    Internal(_TRAINER, "_save_rng_state", "running sums of losses are saved with the random states",
             "callbacks can save state per process", ("output_dir",)),
    Internal(_TRAINER, "_load_rng_state", "running sums of losses are restored with the random states",
             "callbacks can load state per process", ("checkpoint",)),
    Internal(_TRAINER, "_init_training_state", "a run is finished from the checkpoint of its last step, without a step more",
             "the Trainer trains no step after max_steps",
             ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial")),
    Internal(_TRAINER, "_load_from_checkpoint", "weights saved under other names than the model's are loaded",
             "the Trainer resumes through from_pretrained", ("resume_from_checkpoint", "model")),
    Internal(_TRAINER, "_load_best_model", "weights saved under other names than the model's are loaded; so is the EMA",
             "the Trainer loads the best model through from_pretrained, and callbacks can take part", ()),
    Internal(_TRAINER, "_tr_loss", "the sum since the last log is saved and restored", "the Trainer does it itself"),
    Internal(_TRAINER, "_globalstep_last_logged", "it belongs to that sum", "the Trainer does it itself"),
    Internal(_TRAINER, "_total_loss_scalar", "the restored sum is not part of the run's mean loss", "the Trainer does it itself"),
    # training/ppo_trainer.py
    Internal(_TRAINER, "_save_optimizer_and_scheduler", "the critic and its optimizer are saved beside the policy's",
             "callbacks can write into a checkpoint before it is whole", ("output_dir",)),
    # training/trainer.py
    Internal(_TRAINER, "_build_accelerator_args", "torch_compile compiles repeated blocks one by one",
             "TrainingArguments can ask for regional compilation", ("kwargs",)),
    Internal(_TRAINER, "_load_optimizer_and_scheduler", "the EMA is loaded with them", "callbacks can load state",
             ("checkpoint",)),
    Internal(_TRAINER, "_get_grad_norm", "a loss that is not finite stops the run before the optimizer step",
             "callbacks get the gradient norm before the step", ("model", "grad_norm")),
    Internal(_TRAINER, "_created_lr_scheduler", "a scheduler of ours is saved and resumed like the Trainer's own",
             "the Trainer makes schedules per parameter group"),
    # training/evaluation.py
    Internal(_TRAINER, "_determine_best_metric", "the best policy is kept whatever is saved otherwise",
             "the Trainer keeps the best model independently of checkpoints", ("metrics", "trial")),
    Internal(_TRAINER, "_prepare_inputs", "as in the Trainer's own prediction_step", "it has a public name", ("inputs",)),
    # training_args/arguments.py
    Internal("transformers.training_args.TrainingArguments", "_VALID_DICT_FIELDS",
             "module_learning_rates can be given as JSON on the command line", "HfArgumentParser parses mappings"),
    # modeling/modeling_vla.py
    Internal(_MODEL, "_init_weights", "new heads start as StarVLA's", _MODEL_API, ("module",)),
    Internal(_MODEL, "_no_split_modules", "names the units of FSDP and device_map", _MODEL_API),
    Internal(_MODEL, "_supports_flash_attn", "says which attention implementations a policy has", _MODEL_API),
    Internal(_MODEL, "_supports_sdpa", "says which attention implementations a policy has", _MODEL_API),
    Internal(_MODEL, "_supports_attention_backend", "says which attention implementations a policy has", _MODEL_API),
    Internal(_MODEL, "_from_config", "makes a policy from scratch in a dtype and with an attention implementation",
             "PreTrainedModel can be made from a config by a public method", ("config", "kwargs")),
    # checkpoints/adapted_modules.py
    Internal(_MODEL, "_tied_weights_keys", "PEFT finds tied embeddings one level below the policy",
             "PEFT looks for tied weights in submodules"),
    # inference/pipeline.py
    Internal(_PIPELINE, "_sanitize_parameters", "splits a call's arguments", _PIPELINE_API, ("pipeline_parameters",)),
    Internal(_PIPELINE, "_forward", "predicts", _PIPELINE_API, ("input_tensors", "forward_parameters")),
    Internal(_PIPELINE, "_preprocess_params", "the pipeline's defaults", _PIPELINE_API),
    Internal(_PIPELINE, "_forward_params", "the pipeline's defaults", _PIPELINE_API),
    Internal(_PIPELINE, "_postprocess_params", "the pipeline's defaults", _PIPELINE_API),
    Internal(_PIPELINE, "_batch_size", "the pipeline's default", _PIPELINE_API),
    Internal(_PIPELINE, "_load_processor", "the pipeline loads a processor", _PIPELINE_API),
    Internal(_PIPELINE, "_load_tokenizer", "the pipeline loads no tokenizer of its own", _PIPELINE_API),
    Internal(_PIPELINE, "_load_image_processor", "the pipeline loads no image processor of its own", _PIPELINE_API),
    Internal(_PIPELINE, "_load_feature_extractor", "the pipeline loads no feature extractor", _PIPELINE_API),
    Internal(_PIPELINE, "_load_video_processor", "the pipeline loads no video processor of its own", _PIPELINE_API),
    # cards/model_card.py
    Internal("transformers.utils.hub.PushToHubMixin", "_upload_modified_files", "push_to_hub keeps the policy's own card",
             "push_to_hub has a hook for the card",
             ("working_dir", "repo_id", "files_timestamps", "commit_message", "token", "create_pr", "revision",
              "commit_description")),
    # keyword arguments that transformers passes, or takes
    Internal("transformers.models.auto.auto_factory", "_from_auto", "the Auto classes pass it to from_pretrained",
             "they don't"),
    Internal("transformers.models.auto.auto_factory", "_commit_hash", "the Auto classes pass it to from_pretrained",
             "they don't"),
    Internal("transformers.models.auto.auto_factory", "_adapter_model_path",
             "the Auto classes pass it when they have gone from an adapter to its base", "they don't"),
    Internal("transformers.pipelines", "_from_pipeline", "pipelines pass it to from_pretrained", "they don't"),
    Internal("transformers.utils.hub", "_raise_exceptions_for_missing_entries", "hub_file returns None for a missing file",
             "cached_file has a public option for it"),
    Internal("transformers.utils.hub", "_raise_exceptions_for_gated_repo", "hub_file returns None for a missing file",
             "cached_file has a public option for it"),
    Internal("transformers.utils.hub", "_raise_exceptions_for_connection_errors",
             "hub_file returns None for a missing file", "cached_file has a public option for it"),
    # below
    Internal("transformers.generation.configuration_utils.CompileConfig", "_compile_all_devices",
             "generation compiles its step on a CPU too, for tests without a GPU", "it has a public name"),
    Internal("transformers.core_model_loading", "_weight_conversions", "see forget_weight_conversions",
             "transformers records only the conversions that it applied"),
)  # fmt: skip


def image_text_to_text_class(config) -> type | None:
    """Return the model class that `AutoModelForImageTextToText` has for a configuration, or None.

    Its `from_config` alone can't say whether there is one, and makes the model in the configuration's own dtype. Until:
    transformers has a public look-up of Auto classes.
    """
    from transformers import AutoModelForImageTextToText

    mapping = _get(AutoModelForImageTextToText, "_model_mapping")
    return mapping[type(config)] if type(config) in mapping else None


def unregister_processor(config_class: type) -> None:
    """Remove a configuration class that was registered with `AutoProcessor`.

    `AutoProcessor` finds a processor class by its name and takes the oldest: if a notebook's cell defines a framework again,
    that would be the outdated one. Until: registering can replace a class.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    _get(PROCESSOR_MAPPING, "_extra_content").pop(config_class)


def deepspeed_config() -> Any | None:
    """Return transformers' DeepSpeed configuration object, or None if there is none.

    It partitions every model that is made while it is set, so it has to be unset and set again around models that each
    process needs whole. Until: transformers has a context manager for that.
    """
    from transformers.integrations import deepspeed

    reference = _get(deepspeed, "_hf_deepspeed_config_weak_ref")
    return None if reference is None else reference()


def has_adapter(model) -> bool:
    """Return whether transformers takes `model` for one with an adapter in it, of which it saves the adapter only.

    Until: PreTrainedModel says so by a public attribute.
    """
    return _get(model, "_hf_peft_config_loaded")


def set_has_adapter(model, value: bool) -> None:
    """Tell transformers whether there is an adapter in `model`; see `has_adapter`.

    transformers' own `load_adapter` sets it too, but loads without checking that all weights are there. Until: it is strict.
    """
    _get(model, "_hf_peft_config_loaded")
    model._hf_peft_config_loaded = value


def attention_implementation(config) -> str | None:
    """Return the attention implementation that a model of this configuration uses, None if none was chosen.

    Until: configurations have a public attribute for it.
    """
    return _get(config, "_attn_implementation")


def set_attention_implementation(config, name: str | None) -> None:
    """Choose the attention implementation of a model of this configuration, which its modules read in each call.

    `model.set_attn_implementation` checks the name for the whole model, and refuses what one of its parts can't. Until: it
    takes a part.
    """
    _get(config, "_attn_implementation")
    config._attn_implementation = name


def compile_config(**options) -> Any:
    """Return transformers' `CompileConfig` with these options, by which `generate` compiles its step on every device.

    By default it does on accelerators only. Until: CompileConfig has a public field for it.
    """
    from transformers import CompileConfig

    config = CompileConfig(**options)
    _get(config, "_compile_all_devices")
    config._compile_all_devices = True
    return config


def forget_weight_conversions(model) -> None:
    """Make `save_pretrained` write a model's tensors under the names that they have in the model.

    Under ZeRO-3, transformers records all conversions of names that it knows as used, and reverts them when it saves. Until:
    it records only those that it applied.
    """
    model._weight_conversions = None  # transformers.core_model_loading reads it


@contextlib.contextmanager
def partial_optimizer_states() -> Iterator[None]:
    """Let accelerate's FSDP2 load an optimizer state that lacks some parameters, inside this context.

    A checkpoint has states only of parameters that had gradients: not of output heads that a policy holds unused, nor of the
    backbone's last layers. Torch refuses to load it for parameters that require gradients. Until: accelerate's FSDP plugin
    takes these options.
    """
    from accelerate.utils import fsdp_utils

    options_of = _get(fsdp_utils, "_prepare_sd_options")

    def lenient(plugin):
        options = options_of(plugin)
        return None if options is None else dataclasses.replace(options, strict=False)

    fsdp_utils._prepare_sd_options = lenient
    try:
        yield
    finally:
        fsdp_utils._prepare_sd_options = options_of


def import_notice(cls: type, auto_class: str) -> dict[str, dict[str, str]]:
    """Return the entry of a saved JSON file by which an Auto class, without `import hf_vla`, fails and says what to import.

    Otherwise `AutoProcessor` returns a bare tokenizer, and `AutoModel` asks for a newer transformers. An Auto class that
    doesn't know a model's type looks into `auto_map` for a reference "REPOSITORY--module.Class" to code in a repository, and
    refuses to run that code in an error that quotes the repository: here this is the notice. There is no code. With
    `import hf_vla`, the Auto classes know the type and don't read the entry.

    This can go when transformers lets a folder name the package that it needs.
    """
    packages = list(dict.fromkeys(("hf_vla", cls.__module__.partition(".")[0])))
    notice = (
        f"This policy is of the package {packages[-1]}: run `import {', '.join(packages)}` before loading it, and "
        f"`pip install {packages[-1]}` before that if need be."
    )
    return {"auto_map": {auto_class: f"{notice}--hf_vla.Policy"}}


def is_import_notice(auto_map) -> bool:
    """Return whether this is the `auto_map` of a file that was saved with an `import_notice`."""
    return isinstance(auto_map, dict) and any(
        str(reference).endswith("--hf_vla.Policy") for reference in auto_map.values()
    )


def _get(owner, name: str):
    """Return a private attribute, or raise an error that says what to do about its absence."""
    try:
        return getattr(owner, name)
    except AttributeError:
        named = owner if hasattr(owner, "__name__") else type(owner)
        package = getattr(named, "__module__", named.__name__).partition(".")[0]
        raise ImportError(
            f"{package} {version(package)} has no {named.__name__}.{name}, on which hf_vla relies; install a version that "
            "hf_vla supports: pip install --upgrade hf_vla"
        ) from None


__all__ = [
    "INTERNALS",
    "Internal",
    "attention_implementation",
    "compile_config",
    "deepspeed_config",
    "forget_weight_conversions",
    "has_adapter",
    "image_text_to_text_class",
    "import_notice",
    "is_import_notice",
    "partial_optimizer_states",
    "set_attention_implementation",
    "set_has_adapter",
    "unregister_processor",
]
