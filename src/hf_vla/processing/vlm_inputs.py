"""Images and text -> the backbone's tensors, by its own chat template, tokenizer and image processor."""

import torch
from PIL import Image

# qwen_vl_utils, which StarVLA puts before Qwen2.5-VL's image processor, resizes with these bounds.
_QWEN_VL_UTILS_PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}


def align_to_patches(image: Image.Image, factor: int) -> Image.Image:
    """Resize to multiples of `factor`, bicubic on 8-bit pixels, as qwen_vl_utils does before Qwen2.5-VL's processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, factor=factor, **_QWEN_VL_UTILS_PIXELS)
    return image.resize((width, height))


def chat_prompt(processor, num_images: int, text: str, answer: str | None = None) -> str:
    """One user turn, images first, then one text, and the generation prompt, by the backbone's chat template.

    An answer becomes an assistant turn, and the generation prompt still follows it, as in StarVLA's training texts.
    """
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    conversation = [{"role": "user", "content": content}]
    if answer is not None:
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def encode(
    processor, images: list[list[Image.Image]], texts: list[str], answers: list[str] | None = None
) -> dict[str, torch.Tensor]:
    """Images and texts of B samples as a left-padded batch for a Qwen-VL backbone.

    Args:
        processor: with `image_processor`, `tokenizer` and `apply_chat_template`.
        images: V >= 1 images a sample. texts: one text a sample. answers: one a sample, for training texts; optional.

    Returns:
        input_ids, attention_mask, mm_token_type_ids (B, L), pixel_values (patches, channels), image_grid_thw (images, 3)
    """
    tokenizer, image_processor = processor.tokenizer, processor.image_processor
    image_token = getattr(tokenizer, "image_token", None) or "<|image_pad|>"
    for index, text in enumerate(texts):
        if image_token in text:
            raise ValueError(f"the instruction of sample {index} contains {image_token!r}, which stands for an image")
    flat = [view for views in images for view in views]
    if processor.resize_to_patches:
        factor = image_processor.patch_size * image_processor.merge_size
        flat = [align_to_patches(view, factor) for view in flat]
    encoded = dict(image_processor(images=flat, return_tensors="pt"))
    counts = (encoded["image_grid_thw"].prod(dim=1) // image_processor.merge_size**2).tolist()
    prompts = []
    for views, text, answer in zip(images, texts, answers or [None] * len(texts), strict=True):
        head, *tail = chat_prompt(processor, len(views), text, answer).split(image_token)
        if len(tail) != len(views):
            raise ValueError(f"the chat template wrote {len(tail)} {image_token!r} for {len(views)} images")
        for piece in tail:
            head += image_token * counts.pop(0) + piece
        prompts.append(head)
    tokens = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    encoded["input_ids"], encoded["attention_mask"] = tokens["input_ids"], tokens["attention_mask"]
    encoded["mm_token_type_ids"] = (tokens["input_ids"] == tokenizer.convert_tokens_to_ids(image_token)).int()
    return encoded
