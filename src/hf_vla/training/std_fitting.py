"""Training the standard deviations of exploration with the policy: by an optimizer of its own, on the gradients of PPO's loss."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..modeling.exploration import LearnedStd

WEIGHTS_FILE = "learned_std.safetensors"
OPTIMIZER_FILE = "learned_std_optimizer.pt"
_MAX_GRAD_NORM = 1.0


class StdFitting:
    """Learned standard deviations and their optimizer. They are not part of the policy, which does not need them after training.

    Args:
        learned: on the device of the policy.
        average: averages a tensor over all processes, as their gradients of the policy are.
        only_last: whether the last denoising step is the only one with noise; what is logged is of that step then.
    """

    def __init__(
        self,
        learned: LearnedStd,
        learning_rate: float,
        average: Callable[[torch.Tensor], torch.Tensor],
        only_last: bool,
    ):
        self.learned, self._average = learned, average
        self.optimizer = torch.optim.Adam(learned.parameters(), lr=learning_rate)
        #: mean standard deviation of the last batch, in normalised units
        self.mean: torch.Tensor | None = None

        def observe(module, inputs, stds: torch.Tensor) -> None:
            self.mean = stds.detach()[:, -1 if only_last else 0 :].mean()

        learned.register_forward_hook(observe)

    def step(self) -> None:
        """Make the step that goes with a step of the policy, and forget the gradients."""
        for parameter in self.learned.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._average(gradient)
        torch.nn.utils.clip_grad_norm_(self.learned.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save_pretrained(self, folder: str) -> None:
        """Write the weights beside the policy's."""
        weights = {name: x.detach().cpu().contiguous() for name, x in self.learned.state_dict().items()}
        save_file(weights, Path(folder, WEIGHTS_FILE))

    def save_state(self, folder: str) -> None:
        """Write what a resumed run needs beside the weights."""
        torch.save(self.optimizer.state_dict(), Path(folder, OPTIMIZER_FILE))

    def load(self, folder: str) -> None:
        """Restore weights and optimizer from a checkpoint.

        Raises:
            OSError: the run had none.
        """
        if not Path(folder, WEIGHTS_FILE).is_file():
            raise OSError(f"{folder} holds no {WEIGHTS_FILE}: the run was begun without learned_std; go on without it")
        self.learned.load_state_dict(load_file(Path(folder, WEIGHTS_FILE)))
        self.optimizer.load_state_dict(torch.load(Path(folder, OPTIMIZER_FILE), weights_only=True))


__all__ = ["StdFitting"]
