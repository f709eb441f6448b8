"""Writing policies as StarVLA's native run folders (StarVLA's semantics, section 1).

That format has no place for some settings. What it cannot hold and predictions depend on is an error here, not a policy that
predicts otherwise when it is read.
"""

import copy
import json
import os
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..registry import class_of
from ..robots.robot_types import modes_for
from ..utils.files import new_folder
from .base_vlm import image_seq_len, load_processor_parts, resizes_to_patches
from .starvla import CONFIG_FILES, FAST_FOLDER, STATISTICS_FILE
from .starvla_frameworks import STARVLA_FRAMEWORKS, Framework, lookup

logger = logging.get_logger(__name__)

#: Fields of configurations that only training reads.
_TRAINING_ONLY = {"repeated_diffusion_steps"}
#: … and that say how to predict: whoever loads the policy chooses them anew.
_PREDICTION_OPTIONS = {"generation_constraint", "zeros_if_undecodable"}
#: What a sub-configuration knows of where, and as what, it was loaded.
_NOT_COMPARED = {"_name_or_path", "architectures", "dtype", "transformers_version"}


def save_repository(model, processor, folder: str | os.PathLike, step: int = 0, base_vlm: str | None = None) -> Path:
    """Write a policy as a native run folder, whole or not at all.

    Args:
        model, processor: a policy of a framework that StarVLA knows.
        folder: must not exist, or be empty.
        step: the number in the checkpoint's name.
        base_vlm: folder or repository that holds the backbone's config, tokenizer and image processor, for the written
            configuration to name; by default `config.vlm_name_or_path`. A native folder does not hold them itself.

    Raises:
        ValueError: StarVLA has no such framework or backbone, or its format cannot hold a setting that changes what the
            policy predicts; all such settings are named.
        OSError: `folder` is not empty, or `base_vlm` can't be loaded.
    """
    config = model.config
    name, framework = next(
        (x for x in STARVLA_FRAMEWORKS.items() if x[1].model_type == config.model_type), (None, None)
    )
    if framework is None:
        raise ValueError(f"StarVLA has no framework for {config.model_type!r}")
    if not (backbone := config.vlm_config.model_type).startswith("qwen"):
        raise ValueError(f"StarVLA's {name} has Qwen-VL backbones only; this policy's is a {backbone!r}")
    if step < 0:
        raise ValueError(f"step is {step}; it must be 0 or more")
    base = base_vlm or config.vlm_name_or_path
    if not base:
        raise ValueError(
            "this policy's backbone was trained from scratch: a StarVLA checkpoint names a folder or repository with the "
            "backbone's config, tokenizer and image processor, and there is none. Save them, and pass base_vlm="
        )
    tree = _yaml_tree(name, framework, config, processor, str(base))
    lost = _lost_of_config(framework, tree, config, processor) | _lost_of_processor(framework, tree, config, processor)
    if base_vlm is not None or Path(base).is_dir():
        lost |= _lost_of_backbone(base, config, processor)
    else:
        logger.warning(
            f"{folder}: whoever reads it takes the tokenizer and the image processor from {base}, as they are there"
        )
    if lost:
        described = "; ".join(
            f"{setting} is {here!r:.80}, read again {there!r:.80}" for setting, (here, there) in lost.items()
        )
        raise ValueError(f"StarVLA's {name} format cannot hold this policy: it would predict otherwise ({described})")
    relative = [key for key in processor.statistics if processor.action_mode(key).needs_state]
    if relative:
        logger.warning(
            f"{folder}: the actions of {', '.join(relative)} are differences to the robot's state; this package adds it back, "
            "StarVLA does not"
        )
    tensors = {key: x.contiguous() for key, x in framework.convert(model.state_dict(), to_starvla=True).items()}
    with new_folder(Path(folder)) as work:
        (work / "checkpoints").mkdir()
        for file in CONFIG_FILES:
            (work / file).write_text(yaml.safe_dump(tree, sort_keys=False))
        (work / STATISTICS_FILE).write_text(json.dumps(processor.statistics, indent=2))
        if (fast := getattr(processor, "fast", None)) is not None:
            fast.save_pretrained(work / FAST_FOLDER)
        (work / "summary.jsonl").write_text(json.dumps({"steps": step}) + "\n")
        torch.save(tensors, work / "checkpoints" / f"steps_{step}_pytorch_model.pt")
    return Path(folder)


def _yaml_tree(name: str, framework: Framework, config, processor, base_vlm: str) -> dict:
    """What StarVLA's trainer would have written as the run's configuration."""
    action_model, trainer = framework.to_yaml(config)
    vla_data = {"obs_image_size": processor.image_size}
    if processor.prompt_template is not None:
        vla_data["CoT_prompt"] = processor.prompt_template
    return {
        "framework": {
            "name": name,
            "qwenvl": {
                "base_vlm": base_vlm,
                "vl_hidden_dim": config.vlm_hidden_size,
                "num_vl_layers": config.vlm_num_layers,
            },
            "action_model": action_model,
            **framework.more_yaml(config),
        },
        "datasets": {"vla_data": vla_data},
        "trainer": trainer,
    }


# What does not come back: {setting: (as it is, as it would be read)}


def _lost_of_config(framework: Framework, tree: dict, config, processor) -> dict[str, tuple]:
    """Fields of the configuration."""
    config_class, processor_class = (class_of(framework.model_type, kind) for kind in ("config", "processor"))
    fields = framework.to_config(tree)
    if processor_class.tells_config:
        fast = {"fast": processor.fast} if hasattr(processor, "fast") else {}
        fields |= processor_class.config_fields(processor.tokenizer, **fast)
    again = config_class(vlm_config=copy.deepcopy(config.vlm_config), **fields)
    own = set(config_class.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    own -= {"vlm_config", "vlm_name_or_path"} | _TRAINING_ONLY
    values = {name: tuple(_plain(getattr(x, name)) for x in (config, again)) for name in sorted(own)}
    lost = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    for name in _PREDICTION_OPTIONS & set(lost):
        logger.warning(f"a StarVLA checkpoint does not hold {name}={lost.pop(name)[0]!r}: pass it again when loading")
    return lost


def _lost_of_processor(framework: Framework, tree: dict, config, processor) -> dict[str, tuple]:
    """Settings of the processor. Its sizes only check what is given, so that those which are not set may come back set."""
    sizes = ("action_dim", "state_dim", "action_horizon")
    again = {
        "image_size": framework.image_size(tree),
        "prompt_template": lookup(tree, "datasets.vla_data.CoT_prompt"),
        "resize_to_patches": resizes_to_patches(config.vlm_config),
        "image_seq_len": image_seq_len(config.vlm_config, processor.image_processor),
        **{name: getattr(config, name) for name in sizes if getattr(processor, name) is not None},
    }
    lost = {name: (getattr(processor, name), x) for name, x in again.items() if getattr(processor, name) != x}
    for key, statistics in processor.statistics.items():
        implied = modes_for(key, statistics)
        if implied is None:
            logger.warning(
                f"StarVLA knows no robot type {key!r}, and its checkpoints don't hold how values are normalised: whoever "
                f"reads this one has to pass normalization_modes={{{key!r}: {processor.normalization_modes.get(key)}}}"
            )
            continue
        own = processor.normalization_modes.get(key) or implied
        for modality in set(own) & set(implied):
            modes = processor.normalizer(key, modality).modes
            if modes != implied[modality]:
                lost[f"normalization_modes[{key!r}][{modality!r}]"] = (modes, implied[modality])
    return lost


def _lost_of_backbone(base_vlm: str, config, processor) -> dict[str, tuple]:
    """What the policy's tokenizer and image processor differ in from those of the backbone's folder or repository."""
    from transformers import AutoConfig

    parts = load_processor_parts(base_vlm)
    tokenizer, image_processor = parts["tokenizer"], parts["image_processor"]
    here, there = (_plain(x) for x in (config.vlm_config, AutoConfig.from_pretrained(base_vlm)))
    lost = {f"vlm_config.{k}": (x, there.get(k)) for k, x in here.items() if k in there and x != there[k]}
    here, there = (x.to_dict() for x in (processor.image_processor, image_processor))
    lost |= {f"image_processor.{name}": (x, there.get(name)) for name, x in here.items() if x != there.get(name)}
    if processor.tokenizer.get_vocab() != tokenizer.get_vocab():
        lost["tokenizer"] = (f"{len(processor.tokenizer)} tokens", f"{len(tokenizer)}, or others")
    if processor.chat_template != parts["chat_template"]:
        lost["chat_template"] = (processor.chat_template, parts["chat_template"])
    return lost


def _plain(value):
    """A configuration as a comparable dict; anything else as it is."""
    if isinstance(value, PreTrainedConfig):
        return _plain(value.to_dict())
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items() if key not in _NOT_COMPARED}
    return list(value) if isinstance(value, tuple) else value


__all__ = ["save_repository"]
