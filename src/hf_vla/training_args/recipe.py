"""What `hf-vla train` reads besides the training arguments: which policy, which data; and how both are built."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor, set_seed

from ..checkpoints.opening import open_checkpoint
from ..data import DatasetMixture, ImageAugmentation, LeRobotDataset, LlavaDataset
from ..data.named_mixtures import load_named_mixture
from ..data.preflight import readable_part
from ..modeling.qwen_fast.action_tokenizer import FastActionTokenizer
from ..processing.new_backbone import write_new_backbone
from ..registry import FRAMEWORKS, class_of, frameworks
from ..robots.normalization import MODES, Normalizer
from ..robots.robot_types import modes_for


def _as_dict(value, name: str) -> dict:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is no valid JSON: {error}") from None
    if not isinstance(value or {}, dict):
        raise ValueError(f"{name} is a {type(value).__name__}; it must map names to values")
    return value or {}


@dataclass
class PolicyArguments:
    """The policy to train: a pretrained one, one on a pretrained backbone, or one from scratch.

    Args:
        policy: continue from this policy (folder or Hub repository): its configuration, weights and processor.
        framework: the framework of a new policy, by default qwen_pi_v3.
        base_vlm: a new policy's backbone (folder or Hub repository) with its weights, tokenizer and image processor.
        vlm_config: a new policy's backbone, from scratch: fields of its configuration. Its vocabulary is made from the data's
            instructions and conversations.
        policy_config: fields of the new policy's configuration, and settings of its processor.
        image_processor_config: fields of the image processor of a backbone from scratch, or to change in that of base_vlm.
    """

    policy: str | None = field(default=None, metadata={"help": "continue from this policy (folder or Hub repository)"})
    framework: str | None = field(default=None, metadata={"help": f"of a new policy: {', '.join(FRAMEWORKS)}"})
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

    dtype: str = field(default="float32", metadata={"help": "of the trained weights: float32 or bfloat16"})

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
        self.framework = self.framework or "qwen_pi_v3"
        if self.framework not in frameworks():
            raise ValueError(f"unknown framework {self.framework!r}; known are {', '.join(frameworks())}")


@dataclass
class DataArguments:
    """The demonstrations.

    Args:
        dataset: LeRobot datasets (folders or Hub repositories) …
        mixture, data_root: … or a mixture's name or YAML file, and the folder that its datasets are in.
        dataset_weights: how often each dataset is drawn from, relative to the others; by default as its frames.
        cameras: names of the cameras, in the order the policy sees them; by default all.
        columns: YAML file that says which columns are state, action, images and instruction; see docs/data.md.
        image_size: [width, height] to which images are resized; by default they are left alone.
        prompt_template: text around the instruction, "{instruction}" in it.
        use_state: whether the policy is given the robot's state.
        action_mode, state_mode: normalisation of robots whose own is not known to the package.
        augmentation: fields of `hf_vla.data.ImageAugmentation`; by default images are not changed.
        on_error: "raise", or "skip" frames that can't be read, which is counted and logged.
        frame_cache: folder in which decoded video frames are kept for later epochs and runs; see docs/data.md.
        vlm_dataset: conversations to co-train with, files of LLaVA's JSON; see [`~hf_vla.data.LlavaDataset`].
        vlm_image_root: the folder that their images' paths are relative to; by default each file's own.
    """

    dataset: list[str] | None = field(default=None, metadata={"help": "LeRobot datasets (folders or repositories)"})
    mixture: str | None = field(default=None, metadata={"help": "in place of dataset: a mixture's name or YAML file"})
    data_root: str | None = field(default=None, metadata={"help": "folder of the mixture's datasets"})
    dataset_weights: list[float] | None = field(default=None, metadata={"help": "one weight a dataset"})
    cameras: list[str] | None = field(default=None, metadata={"help": "cameras in the policy's order; default all"})
    columns: str | None = field(default=None, metadata={"help": "YAML file: which columns are state, action, images"})
    image_size: list[int] | None = field(default=None, metadata={"help": "width and height of images"})
    prompt_template: str | None = field(default=None, metadata={"help": "text around {instruction}"})
    use_state: bool = field(default=True, metadata={"help": "give the policy the robot's state"})
    action_mode: str = field(default="q99", metadata={"help": "normalisation of actions: q99, min_max, mean_std"})
    state_mode: str = field(default="q99", metadata={"help": "normalisation of states: q99, min_max, mean_std"})
    augmentation: dict | str | None = field(default=None, metadata={"help": "JSON: fields of ImageAugmentation"})
    on_error: str = field(default="raise", metadata={"help": "raise, or skip frames that can't be read"})
    frame_cache: str | None = field(default=None, metadata={"help": "folder that keeps decoded video frames"})
    vlm_dataset: list[str] | None = field(
        default=None, metadata={"help": "conversations to co-train with: files of LLaVA's JSON"}
    )
    vlm_image_root: str | None = field(default=None, metadata={"help": "folder of vlm_dataset's images"})

    def __post_init__(self):
        if bool(self.dataset) == bool(self.mixture):
            raise ValueError("set dataset (one or more LeRobot datasets) or mixture (a mixture's name or YAML file)")
        of_datasets = [name for name in ("dataset_weights", "cameras", "columns") if getattr(self, name)]
        if self.mixture and of_datasets:
            raise ValueError(f"{', '.join(of_datasets)} belong to dataset; a mixture's file says its own")
        if self.data_root and not self.mixture:
            raise ValueError("data_root is the folder of a mixture's datasets, and no mixture is set")
        if self.vlm_image_root and not self.vlm_dataset:
            raise ValueError("vlm_image_root is the folder of vlm_dataset's images, and no vlm_dataset is set")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size is {self.image_size}; give width and height")
        for name in ("action_mode", "state_mode"):
            if getattr(self, name) not in MODES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(MODES)}")
        self.augmentation = _as_dict(self.augmentation, "augmentation")
        if unknown := set(self.augmentation) - set(ImageAugmentation.__dataclass_fields__):
            known = ", ".join(ImageAugmentation.__dataclass_fields__)
            raise ValueError(f"augmentation has no {', '.join(sorted(unknown))}; it has {known}")

    @cached_property
    def conversations(self) -> list[LlavaDataset] | None:
        """The datasets to co-train with, each read once."""
        files = self.vlm_dataset or []
        return [LlavaDataset(file, self.vlm_image_root, on_error=self.on_error) for file in files] or None

    def build(self, action_horizon: int, seed: int, hold_out: Callable | None = None) -> DatasetMixture:
        """The training dataset; `hold_out`, where given, makes each member the part of it that is trained on."""

        def mix(members, weights, **options):
            if self.on_error == "skip":
                members = [readable_part(member) for member in members]
            return DatasetMixture([hold_out(member) if hold_out else member for member in members], weights, **options)

        options = {
            "seed": seed,
            "on_error": self.on_error,
            "augmentation": ImageAugmentation(**self.augmentation) if self.augmentation else None,
        }
        if self.mixture:
            options |= {"action_horizon": action_horizon, "frame_cache": self.frame_cache}
            return load_named_mixture(mix, self.mixture, self.data_root, **options)
        own = {"cameras": self.cameras, "columns": self.columns, "frame_cache": self.frame_cache}
        datasets = [LeRobotDataset(path, action_horizon, **own) for path in self.dataset]
        return mix(datasets, self.dataset_weights, **options)


def build(
    policy: PolicyArguments, data: DataArguments, seed: int, hold_out: Callable | None = None, **loading_options
):
    """The model, the processor and the training dataset of a recipe.

    `hold_out` is as for `DataArguments.build`; `loading_options` are for the weights of a policy or backbone, such as
    `quantization_config`.
    """
    set_seed(seed)
    if policy.policy:
        checkpoint = open_checkpoint(policy.policy)
        if checkpoint.is_adapter:
            raise ValueError(
                f"{policy.policy} is an adapter, without its base; to train on from it, merge them first "
                f"(hf-vla merge {policy.policy} MERGED), or resume its run with resume_from_checkpoint"
            )
        model = AutoModel.from_pretrained(checkpoint, dtype=policy.dtype, **loading_options)
        processor = AutoProcessor.from_pretrained(checkpoint)
        mixture = data.build(model.config.action_horizon, seed, hold_out)
    else:
        horizon = policy.policy_config.get("action_horizon", class_of(policy.framework, "config").action_horizon)
        mixture = data.build(horizon, seed, hold_out)
        model, processor = _new_policy(policy, data, mixture.datasets, loading_options)
    _describe_data(processor, mixture.statistics, mixture.datasets, data)
    return model, processor, mixture


def _new_policy(policy: PolicyArguments, data: DataArguments, datasets: list[LeRobotDataset], loading_options: dict):
    statistics = datasets[0].statistics
    fields = {"action_dim": len(statistics["action"]["mean"]), **policy.policy_config}
    if "state" in statistics:
        fields.setdefault("state_dim", len(statistics["state"]["mean"]))
    model_class = class_of(policy.framework, "model")
    if "fast" in class_of(policy.framework, "processor").settings() and not {"fast", "fast_tokenizer"} & set(fields):
        fields["fast"] = _fit_fast(datasets, data)
    if policy.base_vlm:
        fields |= {"image_processor_config": policy.image_processor_config, "dtype": policy.dtype}
        return model_class.from_vlm(policy.base_vlm, **fields, **loading_options)
    texts = sorted({text for dataset in datasets for text in dataset.instructions})
    for conversations in data.conversations or []:
        texts.extend(conversations.texts())
    with tempfile.TemporaryDirectory() as folder:
        write_new_backbone(Path(folder), policy.vlm_config, texts, policy.image_processor_config)
        model, processor = model_class.from_vlm(folder, random_init=True, dtype=getattr(torch, policy.dtype), **fields)
    model.config.vlm_name_or_path, model.config.vlm_config._name_or_path = None, ""  # it came from nowhere
    return model, processor


def _fit_fast(datasets: list[LeRobotDataset], data: DataArguments) -> FastActionTokenizer:
    """A FAST tokenizer of the data's own normalised action chunks."""
    chunks = []
    for dataset in datasets:
        statistics = dataset.statistics
        normalizer = Normalizer(statistics["action"], _modes(dataset, statistics, data)["action"], dataset.key)
        for of_episode in dataset.chunks():
            chunks.extend(normalizer.normalize(of_episode))
    return FastActionTokenizer.fit(chunks)


def _modes(dataset: LeRobotDataset, statistics: dict, data: DataArguments) -> dict:
    """Normalisation of a robot type that is known, else what the recipe says."""
    return modes_for(dataset.key, statistics) or {"action": data.action_mode, "state": data.state_mode}


def _describe_data(processor, all_statistics: dict, datasets: list[LeRobotDataset], data: DataArguments) -> None:
    """Write the data's statistics, modes and names, and the recipe's image size and prompt into the processor."""
    processor.statistics = {**processor.statistics, **all_statistics}
    for dataset in datasets:
        key, statistics = dataset.key, all_statistics[dataset.key]
        modes = _modes(dataset, statistics, data)
        processor.normalization_modes = {**processor.normalization_modes, key: modes}
        if dataset.action_names:
            processor.action_names = {**processor.action_names, key: list(dataset.action_names)}
    if data.image_size:
        processor.image_size = list(data.image_size)
    if data.prompt_template:
        processor.prompt_template = data.prompt_template


__all__ = ["DataArguments", "PolicyArguments", "build"]
