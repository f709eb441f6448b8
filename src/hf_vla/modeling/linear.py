"""Linear layers of action heads."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

#: below, a call of oneDNN costs more than it saves
_SMALL = 1 << 16


class Linear(nn.Linear):
    """torch's linear layer, by oneDNN in float32 on a CPU.

    torch multiplies float32 matrices by MKL there, which on AMD's processors takes twice the time of oneDNN. Results differ in
    rounding. Until: torch chooses the faster one itself.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            self.weight.device.type != "cpu"
            or self.weight.numel() < _SMALL
            or not x.dtype == self.weight.dtype == torch.float32
            or torch.compiler.is_compiling()  # inductor has its own
            or torch.is_autocast_enabled("cpu")
            or not torch.backends.mkldnn.enabled
            or not torch.backends.mkldnn.is_available()
        ):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _ByOneDNN.apply(x, self.weight, self.bias)
        return _product(x, self.weight, self.bias)


class _ByOneDNN(torch.autograd.Function):
    """x (…, K), weight (N, K), bias (N,) -> (…, N), with the gradients' products by oneDNN too."""

    @staticmethod
    def forward(x, weight, bias):
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(rows, weight.t()).view(x.shape) if of_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


__all__ = ["Linear"]
