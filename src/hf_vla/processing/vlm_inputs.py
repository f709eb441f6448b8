"""Converting images and text to the backbone's tensors, by its own chat template, tokenizer and image processor."""

from itertools import groupby
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image

from .backbone_families import lay_out


def chat_prompt(processor, num_images: int, text: str, answer: str | None = None) -> str:
    """Return one user turn, images first, then one text, and the generation prompt, by the backbone's chat template.

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
    """Encode images and texts of B samples as a left-padded batch for the backbone.

    Args:
        processor: with `image_processor`, `tokenizer` and `apply_chat_template`.
        images: V >= 1 images per sample. texts: one per sample. answers: one per sample, for training texts; optional.

    Returns:
        input_ids, attention_mask (B, L), and the image inputs of the backbone's family ([`~hf_vla.processing.backbone_families`])
    """
    laid_out = lay_out(processor, images)
    image_token = laid_out.image_token
    for index, text in enumerate(texts):
        if image_token in text:
            raise ValueError(f"the prompt of sample {index} contains {image_token!r}, which stands for an image")
    replacements = iter(laid_out.texts)
    # What a batch's samples share, such as their instruction, is rendered and tokenised once.
    samples = [
        (text, answer, tuple(next(replacements) for _ in views))
        for views, text, answer in zip(images, texts, answers or [None] * len(texts), strict=True)
    ]
    different = list(dict.fromkeys(samples))
    prompts = {key: _rendered(processor, *key) for key in {(len(own), text, answer) for text, answer, own in samples}}
    for (views, *_), prompt in prompts.items():
        if (written := prompt.count(image_token)) != views:
            raise ValueError(f"the chat template wrote {written} {image_token!r} for {views} images")
    expanded = _tokens(
        processor.tokenizer, image_token, [(prompts[len(own), text, answer], own) for text, answer, own in different]
    )
    tokens_of = dict(zip(different, expanded, strict=True))
    return _with_images(
        processor, _left_padded(processor.tokenizer, [tokens_of[sample] for sample in samples]), laid_out
    )


#: Per processor, rendered prompts by all that they depend on: robots are given few instructions, again and again.
_PROMPTS: WeakKeyDictionary = WeakKeyDictionary()
_KEPT_PROMPTS = 4096


def _rendered(processor, num_images: int, text: str, answer: str | None) -> str:
    """As `chat_prompt`, remembered if there is no answer, of which each is another."""
    if answer is not None:
        return chat_prompt(processor, num_images, text, answer)
    key = (num_images, text, str(processor.chat_template), str(processor.tokenizer.special_tokens_map))
    known = _PROMPTS.setdefault(processor, {})
    if (prompt := known.get(key)) is None:
        if len(known) >= _KEPT_PROMPTS:
            known.clear()
        prompt = known[key] = chat_prompt(processor, num_images, text)
    return prompt


def _tokens(tokenizer, image_token: str, prompts: list[tuple[str, tuple[str, ...]]]) -> list[np.ndarray]:
    """Tokenise prompts, each with what takes the place of its image tokens.

    An image of n image tokens is one for the tokenizer, and repeated afterwards: those are most of a prompt.
    """
    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    lengths = [[len(text) // len(image_token) for text in own] for _, own in prompts]
    repeated = all(
        text == image_token * length
        for (_, own), of_images in zip(prompts, lengths, strict=True)
        for text, length in zip(own, of_images, strict=True)
    )
    if repeated:
        rows = [np.array(row) for row in tokenizer([prompt for prompt, _ in prompts], **_PLAIN)["input_ids"]]
        if all((row == image_token_id).sum() == len(of_images) for row, of_images in zip(rows, lengths, strict=True)):
            return [_repeated(row, row == image_token_id, own) for row, own in zip(rows, lengths, strict=True)]
    texts = [_expand(prompt, image_token, list(own)) for prompt, own in prompts]
    return [np.array(row) for row in tokenizer(texts, **_PLAIN)["input_ids"]]


def _repeated(row: np.ndarray, is_image: np.ndarray, lengths: list[int]) -> np.ndarray:
    counts = np.ones(len(row), dtype=int)
    counts[is_image] = lengths
    return np.repeat(row, counts)


def _left_padded(tokenizer, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, L) of the samples' tokens."""
    longest = max(map(len, rows))
    if tokenizer.pad_token_id is None and any(len(row) < longest for row in rows):
        raise ValueError("the tokenizer has no pad_token, which prompts of unequal lengths need in a batch; set one")
    ids = np.full((len(rows), longest), tokenizer.pad_token_id or 0)
    mask = np.zeros_like(ids)
    for row, own_ids, own_mask in zip(rows, ids, mask, strict=True):
        own_ids[longest - len(row) :] = row
        own_mask[longest - len(row) :] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def image_token_positions(
    processor, images: list[list[Image.Image]], input_ids: torch.Tensor
) -> list[list[np.ndarray]]:
    """Return where the tokens of each image lie, in the prompt and in the image.

    Args:
        images: V >= 1 images per sample. input_ids: (B, L), what `encode` made of them.

    Returns:
        per sample and image an integer array (rows, columns, layers): the places in the sample's row of `input_ids`
        whose tokens show that cell of the image. A token may show several cells.

    Raises:
        ValueError: the layout of the backbone's family gives no grids, or the prompts are not of these images.
    """
    laid_out = lay_out(processor, images)
    if laid_out.grids is None:
        raise ValueError(
            f"where the tokens of an image lie in it is not known for backbones with a "
            f"{type(processor.image_processor).__name__}; let the layout of its BackboneFamily give `grids`"
        )
    image_token_id = processor.tokenizer.convert_tokens_to_ids(laid_out.image_token)
    grids, located = iter(laid_out.grids), []
    for views, row in zip(images, input_ids, strict=True):
        places = (row == image_token_id).nonzero()[:, 0].cpu().numpy()
        own = [next(grids) for _ in views]
        counts = [int(grid.max()) + 1 for grid in own]
        if sum(counts) != len(places):
            raise ValueError(f"a prompt has {len(places)} image tokens, its {len(views)} images make {sum(counts)}")
        starts = np.cumsum([0, *counts[:-1]])
        located.append([places[start + grid] for start, grid in zip(starts, own, strict=True)])
    return located


def readable(tokenizer, input_ids) -> str:
    """Return the text of a sample's tokens (L,), special ones included; three or more equal ones as "<|image_pad|>×36"."""
    special = tokenizer.added_tokens_decoder
    parts, rest = [], []
    for token, run in groupby(np.asarray(input_ids).tolist()):
        length = len(list(run))
        if length < 3 or token not in special:
            rest += [token] * length
            continue
        parts += [tokenizer.decode(rest), f"{tokenizer.decode([token])}×{length}"]
        rest = []
    return "".join([*parts, tokenizer.decode(rest)])


def encode_conversations(
    processor, images: list[list[Image.Image]], conversations: list[list[dict]]
) -> dict[str, torch.Tensor]:
    """Encode conversations of B samples as a left-padded batch, with labels for a loss on the assistant's turns.

    Args:
        images: the images of each sample, in the order in which its turns refer to them; none for plain text.
        conversations: messages of each sample, as chat templates take them.

    Returns:
        as `encode`, and labels (B, L): the ids of the assistant's turns and of the tokens that end them, -100 elsewhere.
    """
    laid_out = lay_out(processor, images) if any(images) else None
    replacements = iter(laid_out.texts if laid_out else ())
    texts, spans = [], []
    for views, messages in zip(images, conversations, strict=True):
        own = [next(replacements) for _ in views]

        def render(turns, own=own, **options):
            text = processor.apply_chat_template(turns, tokenize=False, **options)
            return _expand(text, laid_out.image_token, own) if own else text

        whole = render(messages)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        ends = [render(messages[: index + 1]) for index in answers]
        starts = [render(messages[:index], add_generation_prompt=True) for index in answers]
        if not answers or not all(whole.startswith(part) for part in (*starts, *ends)):
            raise ValueError(
                "a conversation for training needs turns of the assistant, and a chat template that renders each turn after "
                f"those before it; got {[message['role'] for message in messages]}"
            )
        texts.append(whole)
        spans.append([(len(start), len(end)) for start, end in zip(starts, ends, strict=True)])
    tokens = processor.tokenizer(texts, return_offsets_mapping=True, **_PADDED)
    learnt = torch.zeros_like(tokens["input_ids"], dtype=torch.bool)
    first, last = tokens["offset_mapping"].unbind(-1)
    for row, sample in enumerate(spans):
        for start, end in sample:
            learnt[row] |= (first[row] >= start) & (last[row] <= end) & (last[row] > first[row])
    encoded = _with_images(processor, tokens, laid_out)
    encoded["labels"] = encoded["input_ids"].where(learnt & encoded["attention_mask"].bool(), -100)
    return encoded


_PLAIN = {"add_special_tokens": False, "return_attention_mask": False}
_PADDED = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}


def _expand(text: str, image_token: str, replacements: list[str]) -> str:
    """Replace the image tokens of `text`, in order; `text` may be the beginning of one with more images."""
    head, *tail = text.split(image_token)
    if len(tail) > len(replacements):
        raise ValueError(f"the chat template wrote {len(tail)} {image_token!r} for {len(replacements)} images")
    return head + "".join(new + piece for new, piece in zip(replacements, tail, strict=False))


def _with_images(processor, tokens, laid_out) -> dict[str, torch.Tensor]:
    encoded = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    if laid_out is None:
        return encoded
    encoded = laid_out.tensors | encoded
    if laid_out.token_types:
        image_token_id = processor.tokenizer.convert_tokens_to_ids(laid_out.image_token)
        encoded["mm_token_type_ids"] = (encoded["input_ids"] == image_token_id).int()
    return encoded
