"""A backbone from scratch, laid out as a pretrained one's repository but without weights: config, tokenizer, image processor."""

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import is_torchvision_available

from .backbone_families import backbone_families
from .new_tokenizer import new_tokenizer

_TOKEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def write_new_backbone(folder: Path, vlm_config: dict, texts: Iterable[str], image_processor_config: dict) -> None:
    """Write the files that `from_vlm(folder, random_init=True, …)` needs.

    Args:
        folder: an existing folder.
        vlm_config: fields of a Qwen-VL configuration, `model_type` among them; token ids and vocabulary are filled in.
        texts: instructions, from which the tokenizer's vocabulary is made.
        image_processor_config: fields of the image processor; by default pixels become [-1, 1] and are not resized beyond
            multiples of the patch size.
    """
    possible = [name for family in backbone_families() if family.from_scratch for name in family.model_types]
    if vlm_config.get("model_type") not in possible:
        raise ValueError(
            f"vlm_config has the model_type {vlm_config.get('model_type')!r}; a backbone from scratch has one of "
            f"{', '.join(map(repr, possible))}. For another family, start from its repository with base_vlm"
        )
    tokenizer = new_tokenizer(texts)
    fields = {**vlm_config, **{name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKEN_IDS.items()}}
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    fields["text_config"] = {**fields.get("text_config", {}), **special, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(**fields)
    vision = config.vision_config
    settings = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 1, "longest_edge": 1 << 24},
    }
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor_class()(**{**settings, **image_processor_config}).save_pretrained(folder)


def _image_processor_class() -> type:
    """Return Qwen-VL's image processor: torchvision's backend if it is installed, else PIL's."""
    if is_torchvision_available():
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


__all__ = ["write_new_backbone"]
