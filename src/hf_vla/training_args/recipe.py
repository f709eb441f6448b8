"""The arguments of `hf-vla train` besides the training arguments: which policy and which data, and how both are built."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, set_seed

from ..checkpoints.opening import open_checkpoint
from ..data import DatasetMixture, ImageAugmentation, LeRobotDataset, LlavaDataset
from ..data.checks import all_made, episode_list
from ..data.frame_times import TIMESTAMPS, checked_rule
from ..data.named_mixtures import load_named_mixture
from ..data.outcomes import successful_episodes
from ..data.preflight import NO_CAMERAS, open_to_train, readable_part
from ..processing.new_backbone import write_new_backbone
from ..processing.prompt import ADVANTAGE_TEMPLATE, ADVANTAGE_TEXTS, check_template
from ..registry import FRAMEWORKS, class_of, frameworks
from ..robots.action_modes import ACTION_MODES
from ..robots.normalization import MODES, NEARLY_CONSTANT, Normalizer, hardly_moving, not_binary
from ..robots.robot_types import RobotType, find_robot, robot_from_mapping
from ..utils.distributed import from_first_process
from ..utils.observations import is_blank
from ..utils.renamed import with_new_names
from .continued import (
    check_continued,
    modes_of_policy,
    say_beyond_statistics,
    say_changed_modes,
    say_replaced_statistics,
)
from .input_contracts import describe_inputs

logger = logging.getLogger(__name__)


def _as_dict(value, name: str) -> dict:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value or {}, dict):
        raise ValueError(f"{name} is a {type(value).__name__}; it must map names to values")
    return value or {}


@dataclass
class PolicyArguments:
    """The policy to train: a pretrained one, one on a pretrained backbone, or one from scratch.

    Args:
        policy: continue from this policy (folder or Hub repository): its configuration, weights and processor.
        robot_type: the robot type that `policy` was trained on, by name or as a YAML file, if its checkpoint does not say.
        new_inputs: train `policy` although cameras, state or the names of dimensions of its statistics key are not those of
            its training.
        keep_statistics: normalise the data of the keys that `policy` has by its statistics, instead of replacing these by the
            data's.
        framework: the framework of a new policy, by default qwen_pi_v3.
        base_vlm: a new policy's backbone (folder or Hub repository) with its weights, tokenizer and image processor.
        vlm_config: fields of the configuration of a new policy's backbone that is trained from scratch. Its vocabulary is made
            from the data's instructions and conversations.
        policy_config: fields of the new policy's configuration, and settings of its processor.
        image_processor_config: fields of the image processor of a backbone from scratch, or fields to change in that of
            base_vlm.
        dtype: dtype of the trained weights, "float32" or "bfloat16".
    """

    policy: str | None = field(default=None, metadata={"help": "continue from this policy (folder or Hub repository)"})
    robot_type: str | None = field(
        default=None, metadata={"help": "robot type that policy was trained on, if its checkpoint does not say"}
    )
    new_inputs: bool = field(
        default=False, metadata={"help": "let cameras, state and dimensions differ from those policy was trained on"}
    )
    keep_statistics: bool = field(
        default=False,
        metadata={"help": "keep the statistics of policy's keys instead of replacing them by the data's"},
    )
    framework: str | None = field(default=None, metadata={"help": f"for a new policy: {', '.join(FRAMEWORKS)}"})
    base_vlm: str | None = field(default=None, metadata={"help": "backbone of a new policy (folder or repository)"})
    vlm_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: configuration of a new policy's backbone from scratch"}
    )
    policy_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: fields of a new policy's configuration, settings of its processor"}
    )
    image_processor_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: fields of a new policy's image processor"}
    )

    dtype: str = field(default="float32", metadata={"help": "dtype of the trained weights: float32 or bfloat16"})

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; weights are trained in float32 or bfloat16")
        for name in ("vlm_config", "policy_config", "image_processor_config"):
            setattr(self, name, _as_dict(getattr(self, name), name))
        backbones = [name for name in ("policy", "base_vlm", "vlm_config") if getattr(self, name)]
        if len(backbones) != 1:
            raise ValueError(
                "set one of policy, base_vlm and vlm_config, which say what backbone is trained; "
                f"set are: {', '.join(backbones) or 'none'}"
            )
        of_new = [name for name in ("framework", "policy_config", "image_processor_config") if getattr(self, name)]
        if self.policy and of_new:
            raise ValueError(
                f"{', '.join(of_new)} describe a new policy; {self.policy} brings its own, so leave them out"
            )
        if self.policy:
            return
        if self.robot_type:
            raise ValueError(
                "robot_type says what policy was trained on, and no policy is set; that of the data is robot"
            )
        if self.new_inputs:
            raise ValueError("new_inputs is about inputs that differ from those of policy, and no policy is set")
        if self.keep_statistics:
            raise ValueError("keep_statistics keeps those of policy, and no policy is set")
        self.framework = self.framework or "qwen_pi_v3"
        if self.framework not in frameworks():
            raise ValueError(f"unknown framework {self.framework!r}; known are {', '.join(frameworks())}")


_NORMALIZATIONS = ("q99", "min_max", "mean_std")
_START_FRAMES, _ADVANTAGE_DROPOUT = 8, 0.3


@dataclass
class DataArguments:
    """The demonstrations to train on, and the conversations to co-train with.

    Args:
        dataset: LeRobot datasets (folders or Hub repositories) …
        mixture, data_root: … or a mixture's name or YAML file, and the folder that contains its datasets.
        dataset_weights: how often each dataset is drawn from, relative to the others; by default in proportion to its frames.
        balance_by_size: multiply the weights, here or in the mixture's file, by the datasets' numbers of frames.
        robot: the robot type of `dataset`, by name or as a YAML file; see docs/data.md.
        cameras: names of the cameras, in the order in which the policy sees them; by default the robot type's, or all.
        columns: YAML file that says which columns are state, action, images and instruction; see docs/data.md.
        start_share, start_frames: draw that share of the samples from the first frames of episodes, where the robot's state
            doesn't tell yet where it is going; see [`~hf_vla.data.DatasetMixture`]. By default the first 8.
        episodes: the episodes of `dataset` to read, as numbers and ranges such as 0-41; by default all.
        timestamps: which frame of its video each row shows: "stored", "exact", "nearest" or "by_frame_index"; see docs/data.md.
        image_size: [width, height] to which images are resized; by default they are not resized.
        prompt_template: text around the instruction, containing "{instruction}".
        use_state: whether the policy is given the robot's state.
        action_mode: "stored"; or "delta" or "relative", computed from stored absolute actions; see docs/data.md. By default
            the robot type's, or "stored".
        absolute_dims: action dimensions, such as the gripper's, that action_mode leaves as they are.
        action_normalization, state_normalization: one mode, one per dimension, or {name of a dimension: mode, …}; the modes
            are q99, min_max, mean_std, binary and none. By default the robot type's, or q99.
        binary_threshold: a binary dimension is 1 above it; by default the robot type's, or 0.5.
        augmentation: fields of `hf_vla.data.ImageAugmentation`; by default images are not changed.
        successes_only: leave out the episodes that were not solved.
        advantage: tag of the labels that `hf-vla label` wrote beside each dataset: the prompt then says whether the advantage of a
            sample is positive or negative. "positive" says so of all samples, without labels.
        advantage_dropout: share of the samples whose prompt does not say it, without which there is no guidance; by default 0.3.
        on_error: "raise", or "skip" to skip frames that can't be read, which is counted and logged.
        frame_cache: folder in which decoded video frames are kept for later epochs and runs; see docs/data.md.
        vlm_dataset: conversations to co-train with, as files in LLaVA's JSON format; see [`~hf_vla.data.LlavaDataset`].
        vlm_image_root: the folder that the paths of their images are relative to; by default each file's own.
        state_mode: the old name of state_normalization.
    """

    dataset: list[str] | None = field(default=None, metadata={"help": "LeRobot datasets (folders or repositories)"})
    mixture: str | None = field(default=None, metadata={"help": "instead of dataset: a mixture's name or YAML file"})
    data_root: str | None = field(default=None, metadata={"help": "folder of the mixture's datasets"})
    dataset_weights: list[float] | None = field(default=None, metadata={"help": "one weight per dataset"})
    balance_by_size: bool = field(default=False, metadata={"help": "multiply weights by datasets' numbers of frames"})
    start_share: float = field(
        default=0.0, metadata={"help": "share of the samples that is from the first frames of episodes"}
    )
    start_frames: int | None = field(
        default=None, metadata={"help": "how many frames are the start of an episode; default: 8"}
    )
    robot: str | None = field(default=None, metadata={"help": "robot type of dataset: a name or a YAML file"})
    cameras: list[str] | None = field(default=None, metadata={"help": "cameras in the policy's order; default: all"})
    columns: str | None = field(default=None, metadata={"help": "YAML file: which columns are state, action, images"})
    episodes: list[str] | None = field(
        default=None, metadata={"help": "episodes of dataset: numbers, and ranges such as 0-41; default: all"}
    )
    timestamps: str | None = field(
        default=None, metadata={"help": f"which frame a row shows: {', '.join(TIMESTAMPS)}; default: stored"}
    )
    image_size: list[int] | None = field(default=None, metadata={"help": "width and height of images"})
    prompt_template: str | None = field(default=None, metadata={"help": "text around {instruction}"})
    use_state: bool = field(default=True, metadata={"help": "give the policy the robot's state"})
    action_mode: str | None = field(
        default=None, metadata={"help": "what actions are made relative to: stored, delta or relative"}
    )
    absolute_dims: list[int] | None = field(
        default=None, metadata={"help": "action dimensions that action_mode leaves as they are"}
    )
    action_normalization: list[str] | None = field(
        default=None,
        metadata={"help": "for actions: one mode, or one per dimension: q99, min_max, mean_std, binary, none"},
    )
    state_normalization: list[str] | None = field(default=None, metadata={"help": "for states, likewise"})
    binary_threshold: float | None = field(default=None, metadata={"help": "a binary dimension is 1 above it"})
    augmentation: dict | str | None = field(default=None, metadata={"help": "JSON: fields of ImageAugmentation"})
    successes_only: bool = field(default=False, metadata={"help": "leave out episodes that were not solved"})
    advantage: str | None = field(
        default=None,
        metadata={"help": "tag of hf-vla label's advantages, which the prompt tells; or positive, for all"},
    )
    advantage_dropout: float | None = field(
        default=None, metadata={"help": "share of prompts that don't tell the advantage; default: 0.3"}
    )
    on_error: str = field(default="raise", metadata={"help": "raise, or skip frames that can't be read"})
    frame_cache: str | None = field(default=None, metadata={"help": "folder that keeps decoded video frames"})
    vlm_dataset: list[str] | None = field(
        default=None, metadata={"help": "conversations to co-train with: files in LLaVA's JSON format"}
    )
    vlm_image_root: str | None = field(default=None, metadata={"help": "folder of vlm_dataset's images"})
    state_mode: str | None = field(default=None, metadata={"help": "the old name of state_normalization"})

    def __post_init__(self):
        self._take_old_names()
        if bool(self.dataset) == bool(self.mixture):
            raise ValueError("set dataset (one or more LeRobot datasets) or mixture (a mixture's name or YAML file)")
        one_by_one = ("dataset_weights", "robot", "cameras", "columns", "episodes")
        of_datasets = [name for name in one_by_one if getattr(self, name)]
        if self.mixture and of_datasets:
            raise ValueError(f"{', '.join(of_datasets)} belong to dataset; a mixture's file says its own")
        if self.data_root and not self.mixture:
            raise ValueError("data_root is the folder of a mixture's datasets, and no mixture is set")
        if self.episodes and len(self.dataset or ()) > 1:
            raise ValueError(
                f"episodes chooses among those of one dataset, and {len(self.dataset)} are set; give each its own in a mixture's file"
            )
        episode_list(self.episodes)
        if self.timestamps is not None:
            checked_rule(self.timestamps)
        if self.vlm_image_root and not self.vlm_dataset:
            raise ValueError("vlm_image_root is the folder of vlm_dataset's images, and no vlm_dataset is set")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size is {self.image_size}; give width and height")
        check_template(self.prompt_template)
        if self.action_mode not in (None, *ACTION_MODES):
            raise ValueError(
                f"action_mode is {self.action_mode!r}; possible: {', '.join(ACTION_MODES)}. How actions are normalised is "
                f"action_normalization, of which known are {', '.join(MODES)}"
            )
        if self.start_frames is not None and not self.start_share:
            raise ValueError("start_frames says what the start of an episode is, for start_share, which is not set")
        if self.advantage_dropout is not None and self.advantage is None:
            raise ValueError("advantage_dropout is about prompts that tell the advantage, and no advantage is set")
        if self.advantage_dropout is not None and not 0 <= self.advantage_dropout < 1:
            raise ValueError(f"advantage_dropout is {self.advantage_dropout}; it must be in [0, 1)")
        if self.robot is not None:
            find_robot(self.robot)
        for modality in ("action", "state"):
            self._modes(modality)
        self.augmentation = _as_dict(self.augmentation, "augmentation")
        if unknown := set(self.augmentation) - set(ImageAugmentation.__dataclass_fields__):
            known = ", ".join(ImageAugmentation.__dataclass_fields__)
            raise ValueError(f"augmentation has no {', '.join(sorted(unknown))}; it has {known}")

    def _take_old_names(self) -> None:
        """Read `action_mode: q99` and `state_mode` of older recipes under their new names, as normalisations."""
        given = {"state_mode": self.state_mode, "state_normalization": self.state_normalization}
        if self.action_mode in _NORMALIZATIONS:
            given |= {"action_mode": self.action_mode, "action_normalization": self.action_normalization}
            self.action_mode = None
        given = {name: value for name, value in given.items() if value is not None}
        renamed = {"action_mode": "action_normalization", "state_mode": "state_normalization"}
        for name, value in with_new_names(given, renamed, "recipe").items():
            setattr(self, name, value)
        self.state_mode = None

    def _modes(self, modality: str, dataset: LeRobotDataset | None = None) -> str | list[str] | None:
        """Return the recipe's normalisation of a dataset's "action" or "state", or None; without a dataset, only check it."""
        names = dataset and (dataset.action_names if modality == "action" else dataset.state_names)
        given = getattr(self, f"{modality}_normalization")
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        if isinstance(given, str) and given.startswith("{"):
            given = _as_dict(given, f"{modality}_normalization")
        if given is None:
            return None
        if isinstance(given, dict) and names is None and dataset is not None:
            raise ValueError(
                f"{modality}_normalization names dimensions, but those of {dataset.name} have no names; list one mode per "
                "dimension instead"
            )
        # Building a robot type of it makes the same checks as for robot types' files.
        keys = {} if not isinstance(given, dict) else {f"{modality}_keys": names or list(given)}
        robot = robot_from_mapping("recipe", {f"{modality}_normalization": given, **keys}, "the recipe")
        layout = robot.layout(modality)
        return layout.modes(layout.dim) if isinstance(given, dict) else given

    def normalization(self, dataset: LeRobotDataset, statistics: dict, policy=None) -> tuple[dict, dict]:
        """Return how a dataset is normalised: modes by modality, and the other options of a `Normalizer`.

        The recipe takes precedence over the policy that is continued, that over the robot type, and the robot type over q99.

        Args:
            policy: the processor of the policy that is continued.

        Raises:
            ValueError: modes that do not fit the dataset, or a binary dimension whose values are not 0 and 1.
        """
        robot, key = dataset.robot, dataset.unnorm_key
        modes = {"action": "q99", "state": "q99"} | (robot.modes(statistics, key) if robot else {})
        options = dict(robot.options()) if robot else {}
        if policy is not None and not (self.robot and robot and robot.name != policy.robot_types.get(key)):
            modes, options = modes_of_policy(policy, key, modes, options, robot)
        for modality in ("action", "state"):
            if (own := self._modes(modality, dataset)) is not None:
                modes[modality] = own
                if modality == "state":
                    options.pop("sin_cos_sizes", None)
        if self.binary_threshold is not None:
            options["binary_threshold"] = self.binary_threshold
        modes = {modality: modes[modality] for modality in modes if modality in statistics}
        for modality in modes:
            _normalizer(dataset, statistics, modality, modes, options)  # checks the modes
            _check_binary(dataset, statistics, modality, modes[modality], options)
        known = policy is not None and key in policy.normalization_modes
        if not known and any(hardly_moving(statistics[modality]).any() for modality in modes):
            options["constant_below"] = NEARLY_CONSTANT
        return modes, options

    @cached_property
    def conversations(self) -> list[LlavaDataset] | None:
        """The datasets to co-train with, each read once."""
        files = self.vlm_dataset or []
        return [LlavaDataset(file, self.vlm_image_root, on_error=self.on_error) for file in files] or None

    def build(self, action_horizon: int, seed: int, hold_out: Callable | None = None) -> DatasetMixture:
        """Build the training dataset; `hold_out`, if given, reduces each member to the part that is trained on."""

        def mix(members, weights, **options):
            if blind := [member.name for member in members if not member.cameras]:
                raise ValueError(f"{', '.join(blind)}: {NO_CAMERAS}")
            if self.on_error == "skip":
                members = [readable_part(member) for member in members]
            if self.successes_only:
                members = [member.with_episodes(successful_episodes(member)) for member in members]
            return DatasetMixture([hold_out(member) if hold_out else member for member in members], weights, **options)

        dropout = _ADVANTAGE_DROPOUT if self.advantage_dropout is None else self.advantage_dropout
        options = {
            "seed": seed,
            "on_error": self.on_error,
            "balance_by_size": self.balance_by_size,
            "start_share": self.start_share,
            "start_frames": _START_FRAMES if self.start_frames is None else self.start_frames,
            "augmentation": ImageAugmentation(**self.augmentation) if self.augmentation else None,
            "advantage_dropout": 0.0 if self.advantage is None else dropout,
        }
        reading = {
            "action_mode": self.action_mode,
            "absolute_dims": self.absolute_dims or (),
            "on_missing": self.on_error,
        }
        reading["timestamps"] = self.timestamps or "stored"
        reading["advantage"] = self.advantage
        if self.mixture:
            options |= {"action_horizon": action_horizon, "frame_cache": self.frame_cache, "member_options": reading}
            return load_named_mixture(mix, self.mixture, self.data_root, **options)
        reading |= {"columns": self.columns, "robot": self.robot, "frame_cache": self.frame_cache}
        reading["episodes"] = episode_list(self.episodes)
        reading["cameras"] = self.cameras
        opened = [partial(open_to_train, path, action_horizon, **reading) for path in self.dataset]
        datasets = all_made(opened)
        return mix(datasets, self.dataset_weights, **options)


def open_policy(policy: PolicyArguments, **loading_options):
    """Return the model and the processor of the policy that a run starts from.

    Raises:
        ValueError: it is an adapter.
    """
    checkpoint = open_checkpoint(policy.policy)
    if checkpoint.is_adapter:
        raise ValueError(
            f"{policy.policy} is an adapter, without its base; to train on from it, merge them first "
            f"(hf-vla merge {policy.policy} MERGED), or resume its run with resume_from_checkpoint"
        )
    model = AutoModel.from_pretrained(checkpoint, dtype=policy.dtype, **loading_options)
    of_processor = {"robot_type": policy.robot_type} if policy.robot_type else {}
    return model, AutoProcessor.from_pretrained(checkpoint, **of_processor)


def build(
    policy: PolicyArguments, data: DataArguments, seed: int, hold_out: Callable | None = None, **loading_options
):
    """Build the model, the processor and the training dataset of a recipe.

    `hold_out` is as for `DataArguments.build`; `loading_options` are for the weights of a policy or backbone, such as
    `quantization_config`.
    """
    set_seed(seed)
    if policy.policy:
        model, processor = open_policy(policy, **loading_options)
        mixture = data.build(model.config.action_horizon, seed, hold_out)
        _check_padding(type(model), mixture.datasets)
        check_continued(processor, mixture.datasets, data, policy.policy, policy.new_inputs)
    else:
        horizon = policy.policy_config.get("action_horizon", class_of(policy.framework, "config").action_horizon)
        mixture = data.build(horizon, seed, hold_out)
        _check_padding(class_of(policy.framework, "model"), mixture.datasets)
        model, processor = _new_policy(policy, data, mixture.datasets, loading_options)
    _describe_data(processor, mixture, data, policy if policy.policy else None)
    return model, processor, mixture


def _new_policy(policy: PolicyArguments, data: DataArguments, datasets: list[LeRobotDataset], loading_options: dict):
    statistics = datasets[0].statistics
    fields = {"action_dim": len(statistics["action"]["mean"]), **policy.policy_config}
    if "state" in statistics:
        modes, options = data.normalization(datasets[0], statistics)
        fields.setdefault("state_dim", _normalizer(datasets[0], statistics, "state", modes, options).encoded_dim)
    model_class = class_of(policy.framework, "model")
    processor_class = class_of(policy.framework, "processor")
    fields |= from_first_process(
        lambda: processor_class.fit_settings(fields, lambda most=None: _action_chunks(datasets, data, most))
    )
    if policy.base_vlm:
        fields |= {"image_processor_config": policy.image_processor_config, "dtype": policy.dtype}
        return model_class.from_vlm(policy.base_vlm, **fields, **loading_options)
    texts = sorted({text for dataset in datasets for text in dataset.instructions})
    if data.advantage is not None:
        texts += ADVANTAGE_TEXTS
    for conversations in data.conversations or []:
        texts.extend(conversations.texts())
    with tempfile.TemporaryDirectory() as folder:
        write_new_backbone(Path(folder), policy.vlm_config, texts, policy.image_processor_config)
        model, processor = model_class.from_vlm(folder, random_init=True, dtype=getattr(torch, policy.dtype), **fields)
    # The backbone's folder was temporary.
    model.config.vlm_name_or_path, model.config.vlm_config.name_or_path = None, ""
    return model, processor


def _normalizer(dataset: LeRobotDataset, statistics: dict, modality: str, modes: dict, options: dict) -> Normalizer:
    return Normalizer(statistics[modality], modes[modality], f"{modality}s of {dataset.name}", **options)


def _action_chunks(datasets: list[LeRobotDataset], data: DataArguments, most: int | None) -> Iterator[np.ndarray]:
    """Yield the data's normalised action chunks (T, D) that lie within their episodes.

    Of more than `most`, one at random of each of as many equal parts, always the same.
    """
    ends = np.cumsum([dataset.num_whole_chunks for dataset in datasets])
    total = int(ends[-1])
    if most is None or total <= most:
        chosen = np.arange(total)
    else:
        parts = np.arange(most + 1) * total // most
        chosen = np.random.default_rng(0).integers(parts[:-1], parts[1:])
    for dataset, end in zip(datasets, ends.tolist(), strict=True):
        begin = end - dataset.num_whole_chunks
        modes, options = data.normalization(dataset, dataset.statistics)
        normalizer = _normalizer(dataset, dataset.statistics, "action", modes, options)
        for chunk in dataset.whole_chunks(chosen[(chosen >= begin) & (chosen < end)] - begin):
            yield normalizer.normalize(chunk)


def _check_padding(model_class: type, datasets: list[LeRobotDataset]) -> None:
    """Say how many frames a policy whose tokens tell of whole chunks leaves out, as these run past the ends of episodes.

    Raises:
        ValueError: all of them.
    """
    if not getattr(model_class, "labels_are_actions", False):
        return
    whole, frames = sum(dataset.num_whole_chunks for dataset in datasets), sum(map(len, datasets))
    if not whole:
        longest = max(int(dataset.metadata.length.max()) for dataset in datasets)
        raise ValueError(
            f"no episode is as long as a chunk of {datasets[0].action_horizon} actions (the longest has {longest}), and this "
            "framework learns from whole chunks only; choose a smaller action_horizon"
        )
    if whole < frames:
        logger.info(
            "%d of %d frames are not learnt from: their chunks run past the end of the episode", frames - whole, frames
        )


def _check_binary(
    dataset: LeRobotDataset, statistics: dict, modality: str, modes: str | list[str], options: dict
) -> None:
    """Raise a ValueError if a binary dimension's values are not 0 and 1, or all lie on one side of the threshold.

    Other values are allowed if the recipe or the robot type sets the threshold; they become 0 and 1.
    """
    threshold, of_modality = options.get("binary_threshold"), statistics[modality]
    names = (dataset.action_names if modality == "action" else dataset.state_names) or range(len(of_modality["mean"]))
    for d, name in enumerate(names):
        if (modes if isinstance(modes, str) else modes[d]) != "binary":
            continue
        low, high = of_modality["min"][d], of_modality["max"][d]
        if not_binary(low, high, threshold):
            above = "0 or 1" if threshold is None else f"above {threshold} or not"
            raise ValueError(
                f"{dataset.name}: {modality} dimension {name} is normalised as binary, {above}, but its values are from {low:g} "
                f"to {high:g}; set binary_threshold, at which it becomes 0 or 1, or give it another mode by "
                f"{modality}_normalization"
            )


def _describe_data(
    processor, mixture: DatasetMixture, data: DataArguments, continued: PolicyArguments | None = None
) -> None:
    """Write the data's statistics, modes and names, and the recipe's image size and prompt into the processor.

    If the policy is `continued`, say what changes of it.
    """
    all_statistics, modes_before = mixture.statistics, processor.normalization_modes
    contracts = {key: processor.input_contract.of(key) for key in processor.statistics} if continued else None
    if continued is not None and continued.keep_statistics:
        say_beyond_statistics(processor.statistics, all_statistics, continued.policy)
        known = {key: of_key for key, of_key in processor.statistics.items() if key in all_statistics}
        all_statistics = {**all_statistics, **known}
    elif continued is not None:
        say_replaced_statistics(processor.statistics, all_statistics, continued.policy)
    for dataset in mixture.datasets:
        key = dataset.unnorm_key
        modes, options = data.normalization(dataset, all_statistics[key], continued and processor)
        if continued is not None and key in modes_before:
            say_changed_modes(key, modes_before[key], modes, continued.policy)
        robot: RobotType | None = dataset.robot
        processor.normalization_modes = {**processor.normalization_modes, key: modes}
        processor.normalization_options = {**processor.normalization_options, key: options}
        processor.robot_types = {**processor.robot_types, key: robot.name if robot else None}
        if dataset.action_names:
            processor.action_names = {**processor.action_names, key: list(dataset.action_names)}
    processor.statistics = {**processor.statistics, **all_statistics}
    if data.image_size:
        processor.image_size = list(data.image_size)
    if data.prompt_template:
        processor.prompt_template = data.prompt_template
    check_template(processor.prompt_template)
    if data.advantage is not None:
        processor.advantage_template = processor.advantage_template or ADVANTAGE_TEMPLATE
    elif processor.advantage_template is not None:
        logger.warning(
            "%s was trained to be told whether the advantage is positive; without advantage in the recipe it is trained and asked "
            "without from now on",
            continued.policy,
        )
        processor.advantage_template = None
    for dataset in mixture.datasets:
        texts = [text for text in dataset.instructions if not is_blank(text)]  # `check` finds rows without instruction
        processor.check_instructions(texts, f"an instruction of {dataset.name}")
    describe_inputs(processor, mixture.datasets, data.use_state, mixture.augmentation, contracts)


__all__ = ["DataArguments", "PolicyArguments", "build", "open_policy"]
