"""Drawing tokens from a language model's distribution, with a generator of one's own, and their log-probabilities."""

import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ..backbone import with_positions, with_token_types
from ..chunk_distributions import Generators, draw
from ..sampling import guided


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding a draw from softmax(scores / temperature): the largest of scores / temperature + Gumbel noise.

    `generate` itself draws from torch's global generator.
    """

    def __init__(self, temperature: float, generator: Generators):
        self.temperature, self.generator = temperature, generator

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        uniform = draw(torch.rand, scores.shape, self.generator, scores.device, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
        return scores.float() / self.temperature + gumbel.to(scores.device, torch.float32)


class GuidedTokens(LogitsProcessor):
    """Gives both halves of a batch, prompts with a condition and without, plain + guidance (conditional - plain) of their logits."""

    def __init__(self, guidance: float):
        self.guidance = guidance

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return guided(scores.float(), self.guidance).repeat(2, 1)


def token_log_probs(
    vlm: PreTrainedModel,
    prompts: dict,
    tokens: torch.Tensor,
    mask: LogitsProcessorList,
    temperature: float,
    filler: int,
) -> torch.Tensor:
    """Sum the log-probabilities of generated tokens, in one pass: float32 (B,).

    Args:
        prompts: the backbone's inputs, `input_ids` (B, L) padded on the left.
        tokens: (B, N), -1 after the end of each generation.
        mask: what was applied to the logits before the temperature.
        filler: the token that stands for -1; it is not attended.
    """
    is_token = tokens >= 0
    number = max(int(is_token.sum(dim=1).max()), 1)
    tokens, is_token = tokens[:, :number].clamp(min=0), is_token[:, :number]
    tokens = tokens.where(is_token, filler)
    ids, length = prompts["input_ids"], prompts["input_ids"].shape[1]
    attended = prompts.get("attention_mask")
    attended = torch.ones_like(ids) if attended is None else attended
    ids = torch.cat([ids, tokens], dim=1)
    inputs = {
        **prompts,
        "input_ids": ids,
        "attention_mask": torch.cat([attended, is_token.to(attended.dtype)], dim=1),
        "mm_token_type_ids": None,
    }
    inputs = with_positions(vlm, with_token_types(vlm, inputs))
    logits = vlm(**inputs, use_cache=False, logits_to_keep=number + 1).logits[:, :-1].float()
    allowed = torch.stack([mask(ids[:, : length + i], logits[:, i]) for i in range(number)], dim=1)
    log_probs = nn.functional.log_softmax(allowed / temperature, dim=-1).gather(-1, tokens[..., None])[..., 0]
    return log_probs.where(is_token, 0.0).sum(dim=1)


__all__ = ["GuidedTokens", "GumbelNoise", "token_log_probs"]
