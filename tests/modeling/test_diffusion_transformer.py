"""The shortcuts of the diffusion transformer change nothing: one batch row for all copies, keys and values computed once."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_vla.modeling.attention import attend
from hf_vla.modeling.diffusion_transformer import Conditioning, DiffusionTransformer

BATCH, COPIES, TOKENS, KEYS, WIDTH, KEY_SIZE = 2, 3, 5, 7, 16, 12


@pytest.fixture(params=[False, True], ids=["all_cross", "interleaved"])
def transformer(request) -> DiffusionTransformer:
    torch.manual_seed(0)
    return DiffusionTransformer(
        SimpleNamespace(_attn_implementation="sdpa"),
        hidden_size=WIDTH,
        num_layers=4,
        head_dim=8,
        key_size=KEY_SIZE,
        output_dim=6,
        dropout=0.0,
        final_dropout=True,
        interleave_self_attention=request.param,
    )


@pytest.fixture
def inputs(transformer):
    """tokens, conditioning with unequal left padding, and a timestep embedding for each copy."""
    torch.manual_seed(1)
    tokens = torch.randn(BATCH, COPIES, TOKENS, WIDTH)
    mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
    mask[1, :3] = False
    conditioning = Conditioning([torch.randn(BATCH, KEYS, KEY_SIZE) for _ in range(4)], mask)
    return tokens, conditioning, transformer.timestep_encoder(torch.randint(0, 1000, (BATCH, COPIES)))


def test_copies_that_share_a_row_equal_copies_by_themselves(transformer, inputs):
    tokens, conditioning, temb = inputs
    together = transformer(tokens, conditioning, temb)
    for b in range(BATCH):
        for r in range(COPIES):
            own = Conditioning([state[b : b + 1] for state in conditioning.states], conditioning.key_mask[b : b + 1])
            alone = transformer(tokens[b : b + 1, r : r + 1], own, temb[b : b + 1, r : r + 1])
            assert torch.allclose(together[b, r], alone[0, 0], atol=1e-6)


def test_prepared_keys_and_modulations_equal_unprepared_ones(transformer, inputs):
    tokens, conditioning, temb = inputs
    expected = transformer(tokens, conditioning, temb)
    prepared = transformer.prepare(conditioning)
    is_cross = [block.is_cross for block in transformer.transformer_blocks]
    assert [pair is not None for pair in prepared.keys_and_values] == is_cross
    prepared.states = [None] * 4  # proof that they are not read again
    assert torch.equal(transformer(tokens, prepared, temb, modulations=transformer.modulations(temb)), expected)


def test_padding_is_not_attended(transformer, inputs):
    tokens, conditioning, temb = inputs
    expected = transformer(tokens, conditioning, temb)
    for state in conditioning.states:
        state[~conditioning.key_mask] = 100.0
    assert torch.equal(transformer(tokens, conditioning, temb), expected)
    conditioning.key_mask = None
    assert not torch.allclose(transformer(tokens, conditioning, temb), expected)


def test_tokens_see_each_other_only_in_self_attention(transformer, inputs):
    tokens, conditioning, temb = inputs
    expected = transformer(tokens, conditioning, temb)
    tokens = tokens.clone()
    tokens[:, :, 0] = torch.randn(BATCH, COPIES, WIDTH)
    changed = transformer(tokens, conditioning, temb)
    others_equal = torch.allclose(changed[:, :, 1:], expected[:, :, 1:], atol=1e-6)
    assert others_equal == (not transformer.interleave_self_attention)


def test_output_head_shifts_first(transformer, inputs):
    """GR00T's output head: the first half of the modulation is the shift, in the blocks it is the scale."""
    tokens, _, temb = inputs
    shift, scale = transformer.proj_out_1(nn.functional.silu(temb)).chunk(2, dim=-1)
    normed = nn.functional.layer_norm(tokens, (WIDTH,), eps=1e-6)
    expected = transformer.proj_out_2(normed * (1 + scale[:, :, None]) + shift[:, :, None])
    assert torch.allclose(transformer.output(tokens, temb), expected, atol=1e-6)


def reference_varlen(module, query, key, value, mask, scaling, cu_seq_lens_q, cu_seq_lens_k, **kwargs):
    """What flash attention computes of sequences laid end to end in one row, written out."""
    assert mask is None and query.shape[0] == 1
    assert (
        kwargs["max_length_q"] == cu_seq_lens_q.diff().max() and kwargs["max_length_k"] == cu_seq_lens_k.diff().max()
    )
    pieces = []
    for index in range(len(cu_seq_lens_q) - 1):
        q = query[:, :, cu_seq_lens_q[index] : cu_seq_lens_q[index + 1]]
        k, v = (x[:, :, cu_seq_lens_k[index] : cu_seq_lens_k[index + 1]] for x in (key, value))
        pieces.append((q @ k.transpose(2, 3) * scaling).softmax(dim=-1) @ v)
    return torch.cat(pieces, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("padding", ["left", "right", "inside"])
def test_flash_attention_gets_sequences_without_padding(monkeypatch, padding):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "reference_flash", reference_varlen)
    torch.manual_seed(0)
    query = torch.randn(3, 2, 4, 8)
    key, value = torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, {"left": slice(0, 2), "right": slice(4, 6), "inside": slice(2, 4)}[padding]] = False
    mask[2, {"left": slice(0, 5), "right": slice(1, 6), "inside": slice(1, 5)}[padding]] = False

    def output(implementation, key_mask):
        module = nn.Module()
        module.config = SimpleNamespace(_attn_implementation=implementation)
        module.num_key_value_groups, module.is_causal = 1, False
        return attend(module, query, key, value, key_mask)

    expected = output("eager", mask)
    assert expected.shape == (3, 4, 16)
    assert torch.allclose(output("reference_flash", mask), expected, atol=1e-6)
    assert torch.allclose(output("sdpa", mask), expected, atol=1e-6)
    assert not torch.allclose(output("sdpa", None), expected, atol=1e-3)
