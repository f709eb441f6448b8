"""Images and text -> the backbone's tensors, by its own chat template, tokenizer and image processor."""

import torch
from PIL import Image

from .image_layouts import layout_for


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
    """Images and texts of B samples as a left-padded batch for the backbone.

    Args:
        processor: with `image_processor`, `tokenizer` and `apply_chat_template`.
        images: V >= 1 images a sample. texts: one text a sample. answers: one a sample, for training texts; optional.

    Returns:
        input_ids, attention_mask (B, L), and the image inputs of the backbone's family ([`~hf_vla.processing.image_layouts`])
    """
    tokenizer = processor.tokenizer
    laid_out = layout_for(processor.image_processor)(processor, images)
    image_token = laid_out.image_token
    for index, text in enumerate(texts):
        if image_token in text:
            raise ValueError(f"the instruction of sample {index} contains {image_token!r}, which stands for an image")
    replacements = iter(laid_out.texts)
    prompts = []
    for views, text, answer in zip(images, texts, answers or [None] * len(texts), strict=True):
        head, *tail = chat_prompt(processor, len(views), text, answer).split(image_token)
        if len(tail) != len(views):
            raise ValueError(f"the chat template wrote {len(tail)} {image_token!r} for {len(views)} images")
        for piece in tail:
            head += next(replacements) + piece
        prompts.append(head)
    tokens = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    encoded = laid_out.tensors | {name: tokens[name] for name in ("input_ids", "attention_mask")}
    if laid_out.marks_tokens:
        encoded["mm_token_type_ids"] = (tokens["input_ids"] == tokenizer.convert_tokens_to_ids(image_token)).int()
    return encoded
