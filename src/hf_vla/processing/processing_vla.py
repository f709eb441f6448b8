"""What the processors of all frameworks share: observations in, tensors out; normalised actions in, robot units out."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from ..cards.model_card import LeavesModelCard
from ..hub import HUB_KWARGS
from ..registry import model_type_of
from ..robots.action_modes import ActionMode
from ..robots.normalization import Normalizer
from ..robots.robot_types import RobotType, find_robot, known_robot, robots_with_key
from ..utils.suggestions import did_you_mean
from .backbone_families import find_family
from .from_vlm import backbone_settings, build_from_vlm, check_image_processor_config, load_processor_parts
from .images import resized, to_pil, to_samples
from .prompt import add_state, apply_template
from .settings import ProcessorSettings
from .vlm_inputs import encode, encode_conversations, image_token_positions, readable

#: Arguments of `from_pretrained` that say how to load, not what.
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

_SETTINGS = [field.name for field in fields(ProcessorSettings)]


class VLAProcessor(LeavesModelCard, ProcessorMixin):
    r"""
    Base of every policy's processor.

    Args:
        image_processor, tokenizer: the backbone's.
        chat_template (`str`, *optional*): the backbone's; by default its tokenizer's.
        settings: see [`~hf_vla.processing.settings.ProcessorSettings`]; each is an attribute.

    A framework with settings of its own takes them as keywords, sets attributes of the same names, and hands the others on:

    ```python
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, *, scale=1.0, **settings):
        super().__init__(image_processor, tokenizer, chat_template, **settings)
        self.scale = scale
    ```
    """

    #: the framework's configuration, which says in `state_input` what becomes of the robot's state
    config_class: type | None = None
    #: settings that have the value of the configuration's field of the same name
    config_settings: tuple[str, ...] = ("action_dim", "state_dim", "action_horizon")
    #: Arguments of `load_settings` that are no settings themselves; `from_vlm` and native checkpoints take them.
    loading_options: tuple[str, ...] = ()

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **settings):
        if unknown := [name for name in settings if name not in _SETTINGS]:
            raise TypeError(
                f"{type(self).__name__} has no setting {unknown[0]!r}{did_you_mean(unknown[0], self.settings())}"
            )
        chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        vars(self).update(vars(ProcessorSettings(**settings)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a processor from a folder or Hub repository, in this format or in StarVLA's native one.

        Args:
            pretrained_model_name_or_path: folder or repository, or a checkpoint that is open already.
            base_vlm: for native checkpoints, the folder or repository of the backbone's processor.
            fast_tokenizer: for native checkpoints of QwenFast, the folder or repository of the FAST tokenizer.
            robot_type: the robot type, by name or as a YAML file, if the checkpoint does not tell it; {key: robot type} if it
                has several statistics keys.
            kwargs: Hub options, and arguments of `__init__` or fields of the image processor to override what was saved.

        Raises:
            ValueError: an argument that is none of these or has no possible value, or another class's processor.
            OSError: no such folder or repository, or files of it are missing.
        """
        from ..checkpoints.opening import open_with

        checkpoint, kwargs = open_with(pretrained_model_name_or_path, kwargs)
        robot_type = kwargs.pop("robot_type", None)
        if "_from_pipeline" in kwargs:  # which hands over the model's options too (dtype, …)
            kwargs = {name: value for name, value in kwargs.items() if name in LOADING_OPTIONS}
        overrides = {name: kwargs.pop(name) for name in cls.settings() if name in kwargs}
        others = {name: value for name, value in kwargs.items() if name not in LOADING_OPTIONS}
        if checkpoint.is_native:
            return checkpoint.processor(cls, image_processor_config=others, robot_type=robot_type, **overrides)
        if (saved := checkpoint.processor_class) not in {None, *(base.__name__ for base in cls.__mro__)}:
            raise ValueError(
                f"{checkpoint.name} holds a {saved}, not a {cls.__name__}; load it with AutoProcessor.from_pretrained or "
                f"{saved}.from_pretrained"
            )
        processor = super().from_pretrained(checkpoint.name, **checkpoint.files.hub, **kwargs)
        check_image_processor_config(processor.image_processor, others, cls.settings())
        if overrides:  # through the constructor, which checks them
            settings = {name: getattr(processor, name) for name in cls.settings()} | overrides
            processor = cls(processor.image_processor, processor.tokenizer, **settings)
        if robot_type is not None:
            processor.set_robot_type(robot_type)
        return processor

    @classmethod
    def from_vlm(cls, vlm_name_or_path, **settings) -> "VLAProcessor":
        """A new policy's processor, from a backbone's folder or repository.

        Args:
            vlm_name_or_path: folder or repository with the backbone's configuration, tokenizer and image processor.
            settings: arguments of `__init__` (`statistics`, `image_size`, `prompt_template`, …), fields of the policy's
                configuration (`action_dim`, `action_horizon`, …), Hub options, `image_processor_config`.
        """
        processor = build_from_vlm(model_type_of(cls), vlm_name_or_path, **settings)[1]
        for name in {"action_dim", "state_dim"} - set(settings):
            setattr(processor, name, None)  # there is no policy yet that values would have to fit
        return processor

    @property
    def state_input(self) -> str | None:
        """What becomes of the robot's state: "head", a tensor for the action head; "prompt", text in the prompt; or None."""
        if self.config_class is None:
            raise ValueError(f"{type(self).__name__} has no config_class; set it to its framework's configuration")
        return self.config_class.state_input

    @classmethod
    def settings(cls) -> list[str]:
        """Return the names of the arguments of `__init__`, the backbone's parts apart: those of all frameworks, and its own."""
        names = ["chat_template", *_SETTINGS]
        for base in cls.__mro__[: cls.__mro__.index(VLAProcessor)]:
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
        processor = cls(*args, **{name: given.pop(name) for name in cls.settings() if name in given})
        return (processor, given) if wants_unused else processor

    def to_dict(self) -> dict:
        """Return all that is saved: the backbone's image processor, and the settings but the chat template, which has its file."""
        settings = {name: getattr(self, name) for name in self.settings() if name != "chat_template"}
        return super().to_dict() | _jsonable(settings)

    @classmethod
    def load_settings(cls, given: dict, file: Callable[[str], Path | None] = lambda name: None, **hub) -> dict:
        """Load the settings that have files of their own and that `config_fields` takes; by default none.

        Args:
            given: what a caller gave; what is loaded here is taken out of it.
            file: name -> a file of the native checkpoint that is loaded, or None if there is no such file.
            hub: Hub options.
        """
        return {}

    @classmethod
    def fit_settings(cls, given: Mapping, chunks: Callable[[], Iterable[np.ndarray]]) -> dict:
        """Make the settings of a new policy that follow from its training data, unless they are given; by default none.

        Args:
            given: what the recipe sets.
            chunks: returns the data's normalised action chunks, (T, action_dim) each.
        """
        return {}

    @classmethod
    def config_fields(cls, tokenizer) -> dict:
        """Return what the model's configuration must know of the backbone's tokenizer; by default nothing."""
        return {}

    @classmethod
    def native_config_fields(cls, load_tokenizer: Callable, loaded: dict) -> dict:
        """Return `config_fields`; the tokenizer is loaded only for a framework that asks for something."""
        if cls.config_fields.__func__ is VLAProcessor.config_fields.__func__:
            return {}
        return cls.config_fields(load_tokenizer(), **loaded)

    @classmethod
    def from_backbone(cls, base_vlm, vlm_config, settings: dict, image_processor_config: dict | None, **hub):
        """Make a processor of a backbone's tokenizer and image processor, for native checkpoints."""
        parts = load_processor_parts(base_vlm, image_processor_config, cls.settings(), **hub)
        return cls(**(parts | backbone_settings(vlm_config, parts["image_processor"]) | settings))

    @staticmethod
    def family_in_starvla(vlm_config) -> bool:
        """Return whether StarVLA has the backbone's family, so that native checkpoints can hold it."""
        family = find_family(vlm_config.model_type)
        return family is not None and family.in_starvla

    def differences_from_backbone(self, base_vlm, vlm_config) -> dict[str, tuple]:
        """Return what a processor made of a backbone anew would have otherwise, {name: (here, there)}; for native checkpoints.

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

    # ------------------------------------------------------------------ in

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        state=None,
        actions=None,
        unnorm_key: str | Sequence[str] | None = None,
        normalized: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Observations (and, for training, actions) of B samples as the model's inputs.

        Args:
            images: B lists of 1..V PIL images or (height, width, 3) arrays; one image or one list of images = one sample.
            text: B instructions; one string = one sample.
            state: (B, state_dim) or (B, 1, state_dim), robot units.
            actions: (B, T, action_dim), robot units.
            unnorm_key: whose statistics; one for all samples or one each. Optional where there is only one.
            normalized: `state` and `actions` are in normalised units already; no statistics are used.
            return_tensors: "pt".

        Raises:
            ValueError: anything of another count, shape, type or value, saying what was given and what is possible.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        texts = _strings(text)
        if not texts:
            raise ValueError(f"text is {text!r:.80}; give one instruction, or one for each sample")
        samples = to_samples(images)
        if len(samples) != len(texts):
            raise ValueError(
                f"received {len(samples)} image samples for {len(texts)} instructions; each instruction needs its own "
                "list of camera images, for example images=[[front], [front, wrist]] for two"
            )
        keys, needed = None, not normalized and (state is not None or actions is not None)
        if needed or (unnorm_key is not None and self.statistics):  # a wrong key is wrong where it isn't needed, too
            keys = self._keys(unnorm_key, len(texts))
        keys = keys if needed else None
        state = self._state(state, keys, len(texts))
        prompts = [self._prompt(t, None if state is None else state[i, 0]) for i, t in enumerate(texts)]
        if actions is not None:
            actions = self._actions(actions, keys, len(texts))
        samples = [[resized(view, self.image_size) for view in views] for views in samples]
        inputs = self._encode(samples, prompts, actions)
        if state is not None and self.state_input == "head":
            inputs["state"] = torch.from_numpy(state)
        if actions is not None:
            inputs["actions"] = torch.from_numpy(actions)
        return BatchFeature(inputs)

    def _encode(self, images: list[list], prompts: list[str], actions: np.ndarray | None) -> dict[str, torch.Tensor]:
        """The backbone's tensors, of resized images and texts; actions are normalised (B, T, A), for FAST to write down."""
        return encode(self, images, prompts)

    def encode_conversations(self, images, conversations) -> BatchFeature:
        """Image-text samples for co-training, see [`~hf_vla.processing.vlm_inputs.encode_conversations`].

        `images` are resized as the robot's are.
        """
        samples = [[resized(to_pil(view, "an image"), self.image_size) for view in views] for views in images]
        return BatchFeature(encode_conversations(self, samples, conversations))

    def image_token_positions(self, images, input_ids: torch.Tensor) -> list[list[np.ndarray]]:
        """Where each image's tokens lie, see [`~hf_vla.processing.vlm_inputs.image_token_positions`].

        `images` as given to the processor, `input_ids` (B, L) as it returned them.
        """
        samples = [[resized(view, self.image_size) for view in views] for views in to_samples(images)]
        return image_token_positions(self, samples, input_ids)

    def readable(self, input_ids) -> str:
        """The text of a sample's tokens (L,), special ones included; a run of one special token as "<|image_pad|>×36"."""
        return readable(self.tokenizer, input_ids)

    def _prompt(self, instruction: str, state: np.ndarray | None) -> str:
        """The user turn's text: the instruction, the state's bins where the framework puts them there, the template."""
        if state is not None and self.state_input == "prompt":
            instruction = add_state(instruction, state)
        return apply_template(self.prompt_template, instruction)

    def _state(self, state, keys: list[str] | None, batch: int) -> np.ndarray | None:
        """(B, S) or (B, 1, S) -> normalised float32 (B, 1, S)"""
        if state is None:
            return None
        state = _array(state, "state")
        given = state.shape
        if state.ndim == 2:
            state = state[:, None]
        if state.ndim != 3 or len(state) != batch or state.shape[1] != 1:
            raise ValueError(
                f"state has shape {given} for {batch} samples; give (B, state_dim) or (B, 1, state_dim): no framework reads "
                "a history of states"
            )
        if keys is not None:
            state = self._normalize(state, keys, "state")
        if self.state_input == "head" and self.state_dim and state.shape[-1] != self.state_dim:
            raise ValueError(f"state has {state.shape[-1]} dimensions; this policy's has {self.state_dim}")
        return np.ascontiguousarray(state, dtype=np.float32)

    def _actions(self, actions, keys: list[str] | None, batch: int) -> np.ndarray:
        """(B, T, A) -> normalised float32 (B, T, A)"""
        actions = _array(actions, "actions")
        dim = self.action_dim or "action_dim"
        if actions.ndim != 3 or len(actions) != batch or (self.action_dim and actions.shape[-1] != self.action_dim):
            raise ValueError(f"actions have shape {actions.shape} for {batch} samples; give (B, T, {dim})")
        if self.action_horizon and actions.shape[1] < self.action_horizon:
            raise ValueError(
                f"actions have {actions.shape[1]} steps; this policy's horizon is {self.action_horizon}: give at least that"
            )
        if not np.isfinite(actions).all():
            sample, step, d = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise ValueError(
                f"actions hold NaN or infinite numbers, first at sample {sample}, step {step}, dimension {d}; "
                "drop or repair these frames"
            )
        if keys is not None:
            actions = self._normalize(actions, keys, "action")
        return np.ascontiguousarray(actions, dtype=np.float32)

    def _normalize(self, values: np.ndarray, keys: list[str], modality: str) -> np.ndarray:
        normalizers = {key: self.normalizer(key, modality) for key in set(keys)}
        return np.stack([normalizers[key].normalize(x) for key, x in zip(keys, values, strict=True)])

    # ----------------------------------------------------------------- out

    def unnormalize_actions(self, actions, unnorm_key: str | Sequence[str] | None = None, state=None) -> np.ndarray:
        """Normalised actions (B, T, action_dim) or (T, action_dim) -> float32 array of the same shape, robot units.

        Args:
            actions: as `predict_action` returns them.
            unnorm_key: whose statistics, one for all samples or one each; optional where there is only one.
            state: the observations' states, (B, state_dim) or (B, 1, state_dim), or one for all (1, state_dim), robot units.
                Needed where the statistics are of actions relative to the state ([`hf_vla.robots.action_modes`]): it is added back,
                so that the result is absolute in every case. Not read otherwise.

        Raises:
            ValueError: anything of another shape or value, an unknown key, or a state that is needed and missing.
        """
        actions = _array(actions, "actions")
        if actions.ndim not in (2, 3):
            raise ValueError(f"actions have shape {actions.shape}; give (B, T, action_dim) or (T, action_dim)")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinite numbers; the policy that predicted them is broken")
        if not isinstance(unnorm_key, Sequence | np.ndarray) or isinstance(unnorm_key, str):
            key = self.resolve_key(unnorm_key)
            normalizer = self.normalizer(key, "action")
            published = self.unnormalization == "published"
            actions = normalizer.unnormalize_as_published(actions) if published else normalizer.unnormalize(actions)
            mode = self.action_mode(key)
            state = None if state is None else _array(state, "state")
            return mode.to_absolute(actions, mode.reference(state, actions, key))
        if actions.ndim != 3:
            raise ValueError(f"one unnorm_key a sample needs actions (B, T, action_dim), not {actions.shape}")
        keys = self._keys(unnorm_key, len(actions))
        states = [None] * len(actions)
        if state is not None:
            states = _array(state, "state")
            states = states if len(states) == len(actions) else [states] * len(actions)
        return np.stack([self.unnormalize_actions(*of_one) for of_one in zip(actions, keys, states, strict=True)])

    def relative_actions(self, actions: np.ndarray, state, unnorm_key: str | None = None) -> np.ndarray:
        """Absolute actions (B, T, action_dim) in robot units -> what the key's statistics are of: relative ones, or the same.

        `state` as for `unnormalize_actions`.
        """
        key = self.resolve_key(unnorm_key)
        mode, state = self.action_mode(key), None if state is None else _array(state, "state")
        return mode.to_relative(actions, mode.reference(state, actions, key))

    def action_mode(self, key: str) -> ActionMode:
        """What the actions of one statistics key are relative to."""
        return ActionMode.of_statistics(self.statistics[key], key)

    # ---------------------------------------------------------- statistics

    def resolve_key(self, key: str | None) -> str:
        """The statistics key that `key` means: itself where it is known, the only one for None; else a ValueError."""
        known = sorted(self.statistics)
        if not known:
            raise ValueError(
                "this processor holds no statistics, so that robot units cannot be normalised: set "
                "processor.statistics = {key: {'action': …, 'state': …}}, or pass normalized=True with normalised values"
            )
        if key is None:
            if len(known) > 1:
                raise ValueError(
                    f"this processor knows several robots; choose one with unnorm_key=: {', '.join(known)}"
                )
            return known[0]
        if not isinstance(key, str):
            raise ValueError(f"unnorm_key is {key!r:.80}; give one of {', '.join(known)}, or a list of one a sample")
        if key not in self.statistics:
            raise ValueError(f"unknown unnorm_key {key!r}; known are {', '.join(known)}{did_you_mean(key, known)}")
        return key

    def _keys(self, unnorm_key, batch: int) -> list[str]:
        if unnorm_key is None or isinstance(unnorm_key, str):
            return [self.resolve_key(unnorm_key)] * batch
        if not isinstance(unnorm_key, Sequence | np.ndarray):
            self.resolve_key(unnorm_key)  # which says what is possible
        keys = [self.resolve_key(key) for key in unnorm_key]
        if len(keys) != batch:
            raise ValueError(f"{len(keys)} unnorm_keys for {batch} samples; give one for all or one each")
        return keys

    def robot_of(self, key: str) -> RobotType | None:
        """Return the robot type of a statistics key, or None if it is not known here by its name."""
        return known_robot(self.robot_types.get(key, key))

    def set_robot_type(self, robot_type: str | Path | RobotType | Mapping) -> None:
        """Take modes and names from a robot type, for all statistics keys or for those of a mapping {key: robot type}.

        Raises:
            ValueError: an unknown robot type or key, or statistics of other dimensions.
        """
        by_key = robot_type if isinstance(robot_type, Mapping) else dict.fromkeys(self.statistics, robot_type)
        for key, name in by_key.items():
            robot, of_key = find_robot(name), self.statistics[self.resolve_key(key)]
            modes = robot.modes(of_key, key)
            self.robot_types = {**self.robot_types, key: robot.name}
            self.normalization_modes = {**self.normalization_modes, key: modes}
            self.normalization_options = {**self.normalization_options, key: robot.options()}
            if robot.action.names:
                self.action_names = {**self.action_names, key: robot.action.names}

    def normalizer(self, key: str, modality: str) -> Normalizer:
        """Return the normaliser of one statistics key's "action" or "state"."""
        of_key = self.statistics[key]
        if not isinstance(of_key, Mapping) or of_key.get(modality) is None:
            has = sorted(of_key) if isinstance(of_key, Mapping) else repr(of_key)[:80]
            raise ValueError(f"the statistics of {key!r} have no {modality!r}; they have {has}")
        robot = self.robot_of(key)
        modes, options = self.normalization_modes.get(key), self.normalization_options.get(key)
        if robot is not None and modality not in (modes or ()):
            robot.check(of_key[modality], key, modality)
            modes, options = robot.modes(of_key, key), robot.options()
        if modality not in (modes or ()):
            sharing = robots_with_key(key)
            raise ValueError(
                f"how {modality}s of {key!r} are normalised is not known"
                + (f": several robot types have this key, {', '.join(sharing)}" if len(sharing) > 1 else "")
                + ". Name the robot type that the policy was trained on with robot_type= in from_pretrained (a name or a YAML "
                f"file; hf_vla.robots.robot_names() lists them), or pass normalization_modes={{{key!r}: {{'action': …, 'state': …}}}}"
            )
        normalizer = Normalizer(of_key[modality], modes[modality], f"{modality}s of {key!r}", **(options or {}))
        if modality == "action" and self.action_dim not in (None, normalizer.dim):
            raise ValueError(
                f"the statistics of {key!r} are of {normalizer.dim} action dimensions; this policy's actions have "
                f"{self.action_dim}"
            )
        return normalizer


def _strings(text) -> list[str]:
    """One string, or a sequence or array of strings, as a list; empty where it is neither."""
    if isinstance(text, str):
        return [text]
    texts = text.tolist() if isinstance(text, np.ndarray) else text
    texts = list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    return texts if all(isinstance(t, str) for t in texts) else []


def _jsonable(value):
    """`value` copied, its arrays as lists."""
    if isinstance(value, Mapping):
        return {key: _jsonable(x) for key, x in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else copy.deepcopy(value)


def _array(x, name: str) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().float().cpu().numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(x, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers of equal lengths: {error}") from None
    return array


__all__ = ["VLAProcessor"]
