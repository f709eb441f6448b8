"""Attention in action heads, through transformers' attention interface, so that `attn_implementation` is honoured."""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..transformers_internals import attention_implementation


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain torch. `attention_mask` is boolean, true = attend. Returns output (B, Q, heads, dim) and weights."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class AttentionRecorder:
    """Receives the attention weights on the backbone's states, block by block."""

    def __init__(self):
        self._weights: list[torch.Tensor | None] = []

    def record(self, weights: torch.Tensor | None) -> None:
        """Add a block's weights (B, heads, Q, K); None for a block that attends other states."""
        self._weights.append(None if weights is None else weights.detach().float())

    def take(self) -> list[torch.Tensor | None]:
        """What was recorded since the last call, one entry per block, float32."""
        taken, self._weights = self._weights, []
        return taken


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    *,
    recorder: AttentionRecorder | None = None,
) -> torch.Tensor:
    """Let every query attend every key that `key_mask` allows.

    Args:
        module: the attention layer; its `config` names the implementation.
        query: (B, heads, Q, dim); key, value: (B, heads, K, dim).
        key_mask: boolean (B, K), true = attend; None if every key may be attended.
        recorder: receives the weights (B, heads, Q, K). Only attention in plain torch has them, so it is used in this call
            whatever the implementation; the output may differ in rounding.

    Returns:
        (B, Q, heads * dim)
    """
    implementation = "eager" if recorder is not None else attention_implementation(module.config) or "sdpa"
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    batch, _, num_queries, head_dim = query.shape
    mask, extra = None, {}
    if key_mask is not None and "flash" in implementation:
        query, key, value, extra = _unpad_keys(query, key, value, key_mask)
    elif key_mask is not None:
        mask = key_mask[:, None, None, :]
    output, attended = interface(
        module, query, key, value, mask, scaling=head_dim**-0.5, dropout=0.0, is_causal=False, **extra
    )
    if recorder is not None:
        recorder.record(attended)
    return output.reshape(batch, num_queries, -1)


def _unpad_keys(query, key, value, key_mask):
    """Concatenate the sequences without their padding, because flash attention takes no cross-attention mask."""
    batch, heads, num_queries, dim = query.shape
    lengths = key_mask.sum(dim=1, dtype=torch.int32)
    starts = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    query_starts = (
        torch.arange(batch + 1, dtype=torch.int32, device=query.device) * num_queries
    )  # queries have no padding
    query = query.transpose(1, 2).reshape(1, batch * num_queries, heads, dim).transpose(1, 2)
    key, value = (x.transpose(1, 2)[key_mask][None].transpose(1, 2) for x in (key, value))
    extra = {
        "cu_seq_lens_q": query_starts,
        "cu_seq_lens_k": starts,
        "max_length_q": num_queries,
        "max_length_k": int(lengths.max()),
    }
    return query, key, value, extra
