"""Loading and saving processors, making them for new policies, and the hooks for a framework's own settings."""

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
from transformers.utils import PROCESSOR_NAME, logging

from ..checkpoints.unusable_files import unusable_files_named
from ..hub import HUB_KWARGS
from ..registry import model_type_of
from ..transformers_internals import import_notice
from .backbone_families import find_family
from .from_vlm import backbone_settings, build_from_vlm, check_image_processor_config, load_processor_parts
from .input_contract import InputContract
from .prompt import check_template
from .settings import ProcessorSettings

logger = logging.get_logger(__name__)

#: Settings that a policy is trained with
_OF_TRAINING = ("prompt_template", "image_size", "statistics", "normalization_modes")

#: Arguments of `from_pretrained` that say how to load; all others are settings or fields of the image processor.
LOADING_OPTIONS = {
    *HUB_KWARGS,
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "backend",
    "code_revision",
    "repo_type",
    "trust_remote_code",
    "use_fast",
    "user_agent",
}


class SavedProcessor:
    """Part of [`~hf_vla.processing.processing_vla.VLAProcessor`]: loading and saving.

    A framework overrides the methods that by default return nothing.
    """

    #: Settings that have the value of the configuration's field of the same name
    config_settings: tuple[str, ...] = ("action_dim", "state_dim", "action_horizon")
    #: Arguments of `load_settings` that are not settings themselves; `from_vlm` and native checkpoints take them.
    loading_options: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a processor from a folder or Hub repository, in this format or in StarVLA's native one.

        Args:
            pretrained_model_name_or_path: folder or repository, or a checkpoint that is open already.
            base_vlm: for native checkpoints, the folder or repository of the backbone's processor.
            fast_tokenizer: for native checkpoints of QwenFast, the folder or repository of the FAST tokenizer.
            robot_type: the robot type, by name or as a YAML file, if the checkpoint does not tell it; {key: robot type} if it
                has several statistics keys.
            kwargs: Hub options, and settings or fields of the image processor that override the saved ones.

        Raises:
            ValueError: an argument is none of these or has no possible value, or the processor is another class's.
            OSError: no such folder or repository, or files of it are missing.
        """
        from ..checkpoints.opening import open_with

        checkpoint, kwargs = open_with(pretrained_model_name_or_path, kwargs)
        robot_type = kwargs.pop("robot_type", None)
        if "_from_pipeline" in kwargs:  # which hands over the model's options too (dtype, …)
            kwargs = {name: value for name, value in kwargs.items() if name in LOADING_OPTIONS}
        overrides = {name: kwargs.pop(name) for name in cls.settings() if name in kwargs}
        check_template(overrides.get("prompt_template"))
        others = {name: value for name, value in kwargs.items() if name not in LOADING_OPTIONS}
        if checkpoint.is_native:
            return checkpoint.processor(cls, image_processor_config=others, robot_type=robot_type, **overrides)
        if (saved := checkpoint.processor_class) not in {None, *(base.__name__ for base in cls.__mro__)}:
            raise ValueError(
                f"{checkpoint.name} holds a {saved}, not a {cls.__name__}; load it with AutoProcessor.from_pretrained or "
                f"{saved}.from_pretrained"
            )
        with unusable_files_named(checkpoint):
            processor = super().from_pretrained(checkpoint.name, **checkpoint.files.hub, **kwargs)
        if processor.input_contract.is_unknown and "input_contract" not in (
            checkpoint.files.read_json(PROCESSOR_NAME) or {}
        ):
            logger.warning_once(
                f"{checkpoint.name} was saved before policies recorded what they were trained on: its cameras, the size of "
                "their images, and whether it reads the robot's state are not known, and observations not checked for them"
            )
        check_image_processor_config(processor.image_processor, others, cls.settings())
        if overrides:  # through the constructor, which checks them
            _say_overridden(checkpoint.name, {name: getattr(processor, name) for name in _OF_TRAINING}, overrides)
            settings = {name: getattr(processor, name) for name in cls.settings()} | overrides
            processor = cls._as_trained(processor.image_processor, processor.tokenizer, **settings)
        if robot_type is not None:
            processor.set_robot_type(robot_type)
        return processor

    @classmethod
    def from_vlm(cls, vlm_name_or_path, **settings):
        """Make a new policy's processor from a backbone's folder or repository.

        Args:
            vlm_name_or_path: folder or repository with the backbone's configuration, tokenizer and image processor.
            settings: arguments of `__init__` (`statistics`, `image_size`, `prompt_template`, …), fields of the policy's
                configuration (`action_dim`, `action_horizon`, …), Hub options, `image_processor_config`.
        """
        processor = build_from_vlm(model_type_of(cls), vlm_name_or_path, **settings)[1]
        for name in {"action_dim", "state_dim"} - set(settings):
            setattr(processor, name, None)  # there is no policy yet that inputs would have to fit
        return processor

    @classmethod
    def settings(cls) -> list[str]:
        """Return the names of the arguments of `__init__`, the backbone's parts apart: those of all frameworks, and its own."""
        names = ["chat_template", *(field.name for field in fields(ProcessorSettings))]
        for base in cls.__mro__[: cls.__mro__.index(SavedProcessor)]:
            if "__init__" in vars(base):
                own = inspect.signature(base.__init__).parameters.values()
                names += [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        return [name for name in dict.fromkeys(names) if name not in ("self", "image_processor", "tokenizer")]

    @classmethod
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        """As transformers', which knows positional arguments of `__init__` only, and would drop the settings."""
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        given = {
            name: value for name, value in {**processor_dict, **kwargs}.items() if name not in cls.get_attributes()
        }
        processor = cls._as_trained(*args, **{name: given.pop(name) for name in cls.settings() if name in given})
        return (processor, given) if wants_unused else processor

    @classmethod
    def _as_trained(cls, *args, **settings):
        """Make the processor of a policy that exists: it keeps a prompt template that is refused for new ones, which is said."""
        template = settings.get("prompt_template")
        try:
            check_template(template)
        except ValueError as error:
            if not isinstance(template, str):
                raise
            logger.warning("%s. This policy was trained with it, and keeps it", error)
            processor = cls(*args, **settings | {"prompt_template": None})
            processor.prompt_template = template
            return processor
        return cls(*args, **settings)

    def to_dict(self) -> dict:
        """Return all that is saved: the backbone's image processor, and the settings but the chat template, which has its file."""
        settings = {name: getattr(self, name) for name in self.settings() if name != "chat_template"}
        # Most policies have none, and their files and fingerprints stay as they were before.
        if settings["advantage_template"] is None:
            del settings["advantage_template"]
        return super().to_dict() | _jsonable(settings)

    def to_json_string(self) -> str:
        """Return what is saved: `to_dict`, and what to import before it is loaded."""
        content = self.to_dict() | import_notice(type(self), "AutoProcessor")
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def load_settings(cls, given: dict, file: Callable[[str], Path | None] = lambda name: None, **hub) -> dict:
        """Load the settings that have files of their own and that `config_fields` takes; by default none.

        Args:
            given: the caller's settings; those that are loaded here are taken out.
            file: name -> a file of the native checkpoint that is loaded, or None if there is no such file.
            hub: Hub options.
        """
        return {}

    @classmethod
    def fit_settings(cls, given: Mapping, chunks: Callable[..., Iterable[np.ndarray]]) -> dict:
        """Make the settings of a new policy that follow from its training data, unless they are given; by default none.

        Args:
            given: the recipe's settings.
            chunks: returns the data's normalised action chunks, (T, action_dim) each, that lie within their episodes; given a
                number, a sample of at most so many. It is called in one process, whose settings all others are given.
        """
        return {}

    @classmethod
    def config_fields(cls, tokenizer) -> dict:
        """Return the fields of the model's configuration that follow from the backbone's tokenizer; by default none."""
        return {}

    @classmethod
    def native_config_fields(cls, load_tokenizer: Callable, loaded: dict) -> dict:
        """Return `config_fields`, and load the tokenizer only if the framework overrides it."""
        if cls.config_fields.__func__ is SavedProcessor.config_fields.__func__:
            return {}
        return cls.config_fields(load_tokenizer(), **loaded)

    @classmethod
    def from_backbone(cls, base_vlm, vlm_config, settings: dict, image_processor_config: dict | None, **hub):
        """Make a processor of a backbone's tokenizer and image processor, for native checkpoints."""
        parts = load_processor_parts(base_vlm, image_processor_config, cls.settings(), **hub)
        return cls._as_trained(**(parts | backbone_settings(vlm_config, parts["image_processor"]) | settings))

    @staticmethod
    def family_in_starvla(vlm_config) -> bool:
        """Return whether StarVLA has the backbone's family, so that native checkpoints can hold it."""
        family = find_family(vlm_config.model_type)
        return family is not None and family.in_starvla

    def differences_from_backbone(self, base_vlm, vlm_config) -> dict[str, tuple]:
        """Compare this processor with one that is made from its backbone again: {name: (here, there)}; for native checkpoints.

        Args:
            base_vlm: folder or repository of the backbone's tokenizer and image processor; None to compare settings only.
            vlm_config: the backbone's configuration.
        """
        again = backbone_settings(vlm_config, self.image_processor)
        differ = {name: (getattr(self, name), x) for name, x in again.items() if getattr(self, name) != x}
        if base_vlm is None:
            return differ
        parts = load_processor_parts(base_vlm)
        here, there = (x.to_dict() for x in (self.image_processor, parts["image_processor"]))
        differ |= {f"image_processor.{name}": (x, there.get(name)) for name, x in here.items() if x != there.get(name)}
        if self.tokenizer.get_vocab() != parts["tokenizer"].get_vocab():
            differ["tokenizer"] = (f"{len(self.tokenizer)} tokens", f"{len(parts['tokenizer'])}, or others")
        if self.chat_template != parts["chat_template"]:
            differ["chat_template"] = (self.chat_template, parts["chat_template"])
        return differ

    def own_config_fields(self) -> dict:
        """Return `config_fields` of this processor."""
        return self.config_fields(self.tokenizer)

    def save_native(self, folder: Path) -> None:
        """Write the settings that have files of their own into a native checkpoint; by default none."""

    @classmethod
    def extend_tokenizer(cls, tokenizer) -> None:
        """Give a plain backbone's tokenizer the tokens that the framework needs and it lacks; by default none."""


def _say_overridden(name: str, saved: Mapping, overrides: Mapping) -> None:
    """Log which settings of the training are given in another way, which changes what the policy predicts."""
    given = [setting for setting in saved if saved[setting] and setting in overrides]
    if changed := [setting for setting in given if _jsonable(saved[setting]) != _jsonable(overrides[setting])]:
        logger.warning(f"{', '.join(changed)} given for {name} differ from those that it was trained with")


def _jsonable(value):
    """Return a copy of `value` with its arrays as lists."""
    if isinstance(value, InputContract):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: _jsonable(x) for key, x in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else copy.deepcopy(value)


__all__ = ["SavedProcessor"]
