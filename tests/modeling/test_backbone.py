"""Reading the backbone's states: other embeddings for some tokens, one graph under torch.compile, bad input."""

import copy

import pytest
import torch
from reference_cases import base_vlm
from tiny_vlms import write_tiny_vlm
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_vla.modeling.backbone import TokenEmbeddings, build_backbone, layer_states

FAMILIES = ["Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct", "smolvlm"]
CONVENTIONS = ["transformers-4.57", "transformers-5"]


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory):
    is_qwen = request.param.startswith("Qwen")
    folder = base_vlm(request.param) if is_qwen else write_tiny_vlm(tmp_path_factory.mktemp("vlm"), request.param)
    torch.manual_seed(0)
    return build_backbone(AutoConfig.from_pretrained(folder)).eval()


def text(samples: int = 2) -> dict[str, torch.Tensor]:
    """Prompts of 9 tokens, the first sample's first two are padding."""
    ids = torch.randint(5, 60, (samples, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_patches_are_projected_by_a_product_on_gpus(vlm):
    """The same numbers and gradients as the convolution's, which runs on CPUs; a device without numbers stands for the GPU."""
    found = [module for name, module in vlm.named_modules() if name.endswith("patch_embed.proj")]
    if not found:
        assert not any(isinstance(module, torch.nn.Conv3d) for module in vlm.modules())
        return
    (projection,) = found
    patches = torch.randn(6, projection.in_channels, *projection.kernel_size)
    results = []
    for project in (projection, projection.product):
        projection.zero_grad()
        output = project(patches)
        output.square().sum().backward()
        results.append((output.detach(), *(p.grad.clone() for p in projection.parameters())))
    for ours, convolution in zip(*results, strict=True):
        torch.testing.assert_close(ours, convolution, rtol=1e-4, atol=1e-4)
    with FlopCounterMode(display=False) as counter:
        on_device = copy.deepcopy(projection).to("meta")(patches.to("meta"))
    (operator,) = counter.get_flop_counts()["Global"]
    assert on_device.shape == results[0][0].shape and operator in (torch.ops.aten.addmm, torch.ops.aten.mm)


@pytest.mark.parametrize("convention", CONVENTIONS)
@torch.no_grad()
def test_embeddings_in_the_place_of_tokens(vlm, convention):
    """Those of other tokens: the states are as if the prompts held these."""
    inputs, positions = text(), torch.tensor([[3, 5, 6], [0, 7, 8]])
    others = torch.tensor([[11, 12, 13], [21, 22, 23]])
    expected = layer_states(
        vlm, convention, **{**inputs, "input_ids": inputs["input_ids"].scatter(1, positions, others)}
    )
    given = TokenEmbeddings(positions, vlm.get_input_embeddings()(others))
    found = layer_states(vlm, convention, token_embeddings=given, **inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    shared = TokenEmbeddings(positions, vlm.get_input_embeddings()(others[0]))  # (K, D), the same for all samples
    states = layer_states(vlm, convention, token_embeddings=shared, **inputs)[-1]
    assert torch.equal(states[0], expected[-1][0]) and not torch.equal(states[1], expected[-1][1])
    plain = layer_states(vlm, convention, **inputs)
    assert not torch.equal(plain[-1], expected[-1]), "the call after is another"


def test_given_embeddings_get_gradients(vlm):
    queries = torch.randn(3, vlm.config.get_text_config().hidden_size, requires_grad=True)
    given = TokenEmbeddings(torch.tensor([[3, 5, 6], [0, 7, 8]]), queries)
    layer_states(vlm, "transformers-4.57", token_embeddings=given, **text())[-1].sum().backward()
    assert (queries.grad.abs().sum(dim=1) > 0).all()
    vlm.zero_grad()


@pytest.mark.parametrize("convention", CONVENTIONS)
@torch.no_grad()
def test_the_states_are_read_in_one_graph(vlm, convention):
    """Of text: where images are, transformers' own code breaks it."""
    inputs = text(1)
    inputs["position_ids"] = torch.arange(9).expand(*((3,) if hasattr(vlm.model, "get_rope_index") else ()), 1, 9)
    expected = layer_states(vlm, convention, **inputs)
    torch.compiler.reset()
    compiled = torch.compile(layer_states, backend="eager", fullgraph=True)
    for _ in range(2):
        found = compiled(vlm, convention, **inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_copy_reads_its_own_states(vlm):
    other = copy.deepcopy(vlm)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        ours, theirs = (layer_states(model, "transformers-4.57", **text())[-1] for model in (vlm, other))
    assert not torch.allclose(ours, theirs)


def test_a_backbone_that_was_built_elsewhere():
    vlm = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base_vlm()))
    with pytest.raises(ValueError, match="is not from build_backbone"):
        layer_states(vlm, "transformers-4.57", **text())
