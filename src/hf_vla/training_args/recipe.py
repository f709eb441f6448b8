"""What `scripts/run_train.py` reads besides the training arguments: which policy, which data; and how both are built."""

import json
from dataclasses import dataclass, field

from transformers import AutoModel, AutoProcessor, set_seed
from transformers.utils import is_torchvision_available

from ..data import DatasetMixture, LeRobotDataset
from ..processing.new_tokenizer import new_tokenizer
from ..processing.robots import ROBOTS, modes_for
from ..registration import FRAMEWORKS, class_of


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
        framework: the framework of a new policy.
        base_vlm: a new policy's backbone (folder or Hub repository) with its weights, tokenizer and image processor.
        policy_config: fields of the new policy's configuration. Without base_vlm, `vlm_config` describes a backbone from
            scratch; its vocabulary is made from the data's instructions.
        image_processor_config: fields of the image processor of a backbone from scratch.
    """

    policy: str | None = field(default=None, metadata={"help": "continue from this policy (folder or Hub repository)"})
    framework: str = field(default="qwen_pi_v3", metadata={"help": f"of a new policy: {', '.join(FRAMEWORKS)}"})
    base_vlm: str | None = field(default=None, metadata={"help": "backbone of a new policy (folder or repository)"})
    policy_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: fields of a new policy's configuration"}
    )
    image_processor_config: dict | str | None = field(
        default=None, metadata={"help": "JSON: fields of the image processor of a backbone from scratch"}
    )

    def __post_init__(self):
        self.policy_config = _as_dict(self.policy_config, "policy_config")
        self.image_processor_config = _as_dict(self.image_processor_config, "image_processor_config")
        if self.framework not in FRAMEWORKS:
            raise ValueError(f"unknown framework {self.framework!r}; known are {', '.join(FRAMEWORKS)}")
        if self.policy and self.base_vlm:
            raise ValueError("policy and base_vlm are both set; a pretrained policy brings its own backbone")
        if not (self.policy or self.base_vlm or self.policy_config.get("vlm_config")):
            raise ValueError(
                "set policy, base_vlm, or policy_config with a vlm_config: there is no backbone to train on"
            )


@dataclass
class DataArguments:
    """The demonstrations.

    Args:
        dataset: LeRobot datasets (folders or Hub repositories).
        dataset_weights: how often each is drawn from, relative to the others.
        cameras: names of the cameras, in the order the policy sees them; by default all.
        image_size: [width, height] to which images are resized; by default they are left alone.
        prompt_template: text around the instruction, "{instruction}" in it.
        use_state: whether the policy is given the robot's state.
        action_mode, state_mode: normalisation of robots whose own is not known to the package.
    """

    dataset: list[str] | None = field(default=None, metadata={"help": "LeRobot datasets (folders or repositories)"})
    dataset_weights: list[float] | None = field(default=None, metadata={"help": "one weight a dataset"})
    cameras: list[str] | None = field(default=None, metadata={"help": "cameras in the policy's order; default all"})
    image_size: list[int] | None = field(default=None, metadata={"help": "width and height of images"})
    prompt_template: str | None = field(default=None, metadata={"help": "text around {instruction}"})
    use_state: bool = field(default=True, metadata={"help": "give the policy the robot's state"})
    action_mode: str = field(default="q99", metadata={"help": "normalisation of actions: q99, min_max, mean_std"})
    state_mode: str = field(default="q99", metadata={"help": "normalisation of states: q99, min_max, mean_std"})

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("set dataset: one or more LeRobot datasets")


class WithoutState:
    """A dataset whose items have no state."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return {name: value for name, value in self.dataset[index].items() if name != "state"}


def build(policy: PolicyArguments, data: DataArguments, seed: int):
    """The model, the processor and the training dataset of a recipe."""
    set_seed(seed)
    if policy.policy:
        model = AutoModel.from_pretrained(policy.policy)
        processor = AutoProcessor.from_pretrained(policy.policy)
        horizon = model.config.action_horizon
    else:
        horizon = policy.policy_config.get("action_horizon", class_of(policy.framework, "config").action_horizon)
    datasets = [LeRobotDataset(path, action_horizon=horizon, cameras=data.cameras) for path in data.dataset]
    mixture = DatasetMixture(datasets, weights=data.dataset_weights, seed=seed)
    if not policy.policy:
        model, processor = _new_policy(policy, datasets)
    _describe_data(processor, mixture.statistics, datasets, data)
    return model, processor, mixture if data.use_state else WithoutState(mixture)


def _new_policy(policy: PolicyArguments, datasets: list[LeRobotDataset]):
    statistics = datasets[0].statistics
    fields = {"action_dim": len(statistics["action"]["mean"]), **policy.policy_config}
    if "state" in statistics:
        fields.setdefault("state_dim", len(statistics["state"]["mean"]))
    if policy.base_vlm:
        return class_of(policy.framework, "model").from_vlm(policy.base_vlm, **fields)
    tokenizer = new_tokenizer(sorted({text for dataset in datasets for text in dataset.instructions}))
    vlm_config = dict(fields.pop("vlm_config"))
    token_ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKEN_IDS.items()}
    vlm_config = {**vlm_config, **token_ids}
    vlm_config["text_config"] = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **vlm_config.get("text_config", {}),
        "vocab_size": len(tokenizer),
    }
    config = class_of(policy.framework, "config")(vlm_config=vlm_config, **fields)
    vision = config.vlm_config.vision_config
    settings = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 1, "longest_edge": 1 << 24},
    }
    image_processor = _image_processor_class()(**{**settings, **policy.image_processor_config})
    processor = class_of(policy.framework, "processor")(
        image_processor,
        tokenizer,
        action_dim=config.action_dim,
        state_dim=config.state_dim,
        action_horizon=config.action_horizon,
    )
    return class_of(policy.framework, "model")(config), processor


def _image_processor_class() -> type:
    """Qwen-VL's image processor: torchvision's backend where it exists, else PIL's."""
    if is_torchvision_available():
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


_TOKEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _describe_data(processor, all_statistics: dict, datasets: list[LeRobotDataset], data: DataArguments) -> None:
    """Write the data's statistics, modes and names, and the recipe's image size and prompt into the processor."""
    processor.statistics = {**processor.statistics, **all_statistics}
    for dataset in datasets:
        key, statistics = dataset.key, all_statistics[dataset.key]
        modes = modes_for(key, statistics) if key in ROBOTS else {"action": data.action_mode, "state": data.state_mode}
        processor.normalization_modes = {**processor.normalization_modes, key: modes}
        if dataset.action_names:
            processor.action_names = {**processor.action_names, key: list(dataset.action_names)}
    if data.image_size:
        processor.image_size = list(data.image_size)
    if data.prompt_template:
        processor.prompt_template = data.prompt_template


__all__ = ["DataArguments", "PolicyArguments", "build"]
