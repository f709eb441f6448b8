"""A tiny backbone of the Idefics3 family (SmolVLM2, Idefics3) with random weights, as a folder in the Hub's layout."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Idefics3ImageProcessorPil,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessorPil,
)

FRAME, PATCH, SCALE_FACTOR = 32, 8, 2
#: image tokens of one frame of FRAME x FRAME pixels
IMAGE_SEQ_LEN = (FRAME // PATCH) ** 2 // SCALE_FACTOR**2

SPECIAL_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
]

# SmolVLM2's layout: "<|im_start|>User:<image>text<end_of_utterance>\nAssistant:"; a space after the colon of a text.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role.capitalize() }}:"
    "{% if message.content[0].type != 'image' %} {% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of SmolVLM2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        additional_special_tokens=SPECIAL_TOKENS,
    )


def write_tiny_vlm(folder: Path, model_type: str = "smolvlm", tied: bool = False) -> Path:
    """Write configuration, weights, tokenizer, image processor and chat template of a tiny "smolvlm" or "idefics3"."""
    tokenizer = tiny_tokenizer()
    text_config = {
        "tie_word_embeddings": tied,
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": FRAME,
        "patch_size": PATCH,
        "initializer_range": 0.2,
    }
    config = AutoConfig.for_model(
        model_type,
        text_config=text_config,
        vision_config=vision_config,
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    image_processor = {"smolvlm": SmolVLMImageProcessorPil, "idefics3": Idefics3ImageProcessorPil}[model_type]
    image_processor(size={"longest_edge": 2 * FRAME}, max_image_size={"longest_edge": FRAME}).save_pretrained(folder)
    return folder


def write_tiny_llava(folder: Path) -> Path:
    """Write configuration, tokenizer, image processor and chat template of a tiny "llava": 4 x 4 tokens per image."""
    tokenizer = tiny_tokenizer()
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoConfig.for_model(
        "llava",
        text_config={"model_type": "llama", "hidden_size": 32, "vocab_size": len(tokenizer), **sizes},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "image_size": FRAME,
            "patch_size": PATCH,
            **sizes,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    size = {"height": FRAME, "width": FRAME}
    CLIPImageProcessorPil(size={"shortest_edge": FRAME}, crop_size=size).save_pretrained(folder)
    return folder
