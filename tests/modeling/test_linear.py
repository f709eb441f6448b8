"""The head's linear layers by oneDNN: the same numbers as torch's to rounding, gradients too."""

import pytest
import torch

from hf_vla.modeling.linear import Linear


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(256, 320)


def gradients(layer, x, of_output) -> tuple[torch.Tensor, ...]:
    output = layer(x)
    return output.detach(), *torch.autograd.grad(output, [x, layer.weight, layer.bias], of_output)


@pytest.mark.parametrize("shape", [(256,), (7, 256), (3, 5, 256), (2, 1, 4, 256)])
def test_gradients_are_those_of_torch(layer, shape):
    x, of_output = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 320)
    ours = gradients(layer, x, of_output)
    with torch.backends.mkldnn.flags(enabled=False):
        for mine, torchs in zip(ours, gradients(layer, x, of_output), strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-5)


def test_inputs_and_gradients_that_are_not_contiguous(layer):
    x = torch.randn(256, 9).t().requires_grad_()
    layer(x).sum().backward()  # the gradient of the output is one number, expanded
    expected = layer.weight.sum(dim=0).expand(9, -1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, torch.full((320,), 9.0))


@pytest.mark.parametrize("trained", ["input", "weight"])
def test_only_what_is_trained_has_a_gradient(layer, trained):
    x = torch.randn(4, 256, requires_grad=trained == "input")
    layer.requires_grad_(trained == "weight")
    layer(x).sum().backward()
    assert [g is not None for g in (x.grad, layer.weight.grad)] == [trained == "input", trained == "weight"]


def test_under_autocast_it_computes_as_torch_does(layer):
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 256)).dtype == torch.bfloat16


def test_what_pulls_gradients_back_by_function_transforms(layer):
    """As real-time chunking does."""
    x, of_output = torch.randn(2, 3, 256), torch.randn(2, 3, 320)
    with torch.no_grad():
        output, pull_back = torch.func.vjp(layer, x)
        (of_input,) = pull_back(of_output)
    torch.testing.assert_close(of_input, of_output @ layer.weight, rtol=1e-5, atol=1e-5)
    assert output.shape == (2, 3, 320)
