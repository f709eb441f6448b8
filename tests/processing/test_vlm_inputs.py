"""Prompts of batches: what samples share is rendered and tokenised once, and image tokens are repeated afterwards."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import base_vlm
from tiny_policies import build
from tiny_vlms import write_tiny_vlm

from hf_vla.processing import vlm_inputs
from hf_vla.processing.backbone_families import lay_out
from hf_vla.processing.vlm_inputs import chat_prompt, encode

FAMILIES = ("Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct")
TEXTS = ["open the drawer", "put the red block  on the plate\n", "open the drawer"]


def views() -> list[list[Image.Image]]:
    rng = np.random.default_rng(0)
    sizes = [[(96, 64), (64, 96)], [(64, 64)], [(96, 64), (64, 96)]]
    return [
        [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in of_sample]
        for of_sample in sizes
    ]


def whole_texts(processor, answers) -> dict:
    """As transformers tokenises and pads the texts with all image tokens in them."""
    laid_out, texts = lay_out(processor, views()), []
    replacements = iter(laid_out.texts)
    for images, text, answer in zip(views(), TEXTS, answers or [None] * 3, strict=True):
        first, *others = chat_prompt(processor, len(images), text, answer).split(laid_out.image_token)
        texts.append(first + "".join(next(replacements) + rest for rest in others))
    options = {"padding": True, "padding_side": "left", "add_special_tokens": False, "return_tensors": "pt"}
    return processor.tokenizer(texts, **options)


@pytest.mark.parametrize("answers", [None, ["yes", "no", "maybe so"]])
@pytest.mark.parametrize("family", [*FAMILIES, "SmolVLM"])
def test_tokens_are_those_of_the_whole_texts(family, answers, tmp_path):
    folder = write_tiny_vlm(tmp_path / "vlm") if family == "SmolVLM" else base_vlm(family)
    processor = build("qwen_oft", folder).processor
    expected, found = whole_texts(processor, answers), encode(processor, views(), TEXTS, answers)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype


def test_a_prompt_is_rendered_once_per_template(monkeypatch):
    processor, rendered = build("qwen_oft").processor, []

    def counted(*args):
        rendered.append(args[2])
        return chat_prompt(*args)

    monkeypatch.setattr(vlm_inputs, "chat_prompt", counted)
    monkeypatch.setattr(vlm_inputs, "_PROMPTS", type(vlm_inputs._PROMPTS)())
    before = [encode(processor, views(), TEXTS)["input_ids"] for _ in range(2)][1]
    assert sorted(rendered) == sorted(set(TEXTS))
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0].content[0].type }}" + processor.chat_template)
    assert encode(processor, views(), TEXTS)["input_ids"].shape[1] > before.shape[1]


def test_remembered_prompts_are_few(monkeypatch):
    processor = build("qwen_oft").processor
    monkeypatch.setattr(vlm_inputs, "_KEPT_PROMPTS", 2)
    for number in range(5):
        encode(processor, views()[1:2], [f"open drawer {number}"])
    assert len(vlm_inputs._PROMPTS[processor]) <= 2


def test_unequal_prompts_need_a_token_to_pad_with():
    processor = copy.deepcopy(build("qwen_oft").processor)
    processor.tokenizer.pad_token = None
    encode(processor, views()[:1], TEXTS[:1])
    with pytest.raises(ValueError, match="pad_token"):
        encode(processor, views(), TEXTS)
