"""Training the critic of PPO: by an optimizer of its own, on features that the policy's backbone gave while it collected."""

from pathlib import Path

import numpy as np
import torch

from ..modeling.critic import Critic
from ..training_args.ppo_arguments import PPOArguments
from .ppo import generalized_advantages, value_losses
from .ppo_buffer import Buffer

OPTIMIZER_FILE = "critic_optimizer.pt"
_MAX_GRAD_NORM = 1.0


class CriticFitting:
    """A critic, its optimizer, and how it learns from a buffer. Processes learn together, by the sum of their gradients.

    Args:
        critic: on the device on which it learns.
        reduce: sums a tensor over all processes.
    """

    def __init__(self, critic: Critic, args: PPOArguments, reduce):
        self.critic, self.args, self._reduce = critic, args, reduce
        self.optimizer = torch.optim.AdamW(critic.parameters(), lr=args.critic_learning_rate, weight_decay=0.0)
        self.started = False

    def start(self, buffer: Buffer) -> None:
        """Make a new critic's values the mean discounted return of the first buffer's chunks, over all processes; only once."""
        if self.started:
            return
        self.started = True
        found = [
            generalized_advantages(rewards, np.zeros(len(rewards)), self.args.gamma, 1.0)[1]
            for rewards in buffer.rewards.values()
        ]
        returns = torch.as_tensor(np.concatenate(found), device=next(self.critic.parameters()).device)
        total, number = self._reduce(torch.stack([returns.sum(), returns.new_tensor(float(len(returns)))])).tolist()
        self.critic.start_from(total / number)

    @torch.no_grad()
    def values(self, buffer: Buffer) -> np.ndarray:
        """Estimate the returns of a buffer's chunks."""
        if not buffer.chunks:
            return np.zeros(0, np.float32)
        return self.critic.of_observations(self._features(buffer)).cpu().numpy()

    def fit(self, buffer: Buffer, seed: list[int]) -> dict[str, float]:
        """Learn the returns of a buffer's chunks; return the loss and the share of clipped values, as means of the last epoch."""
        args, device = self.args, next(self.critic.parameters()).device
        features = self._features(buffer) if buffer.chunks else None
        returns, old = (torch.as_tensor(x, device=device) for x in (buffer.returns, buffer.values))
        number = max(1, round(buffer.total / args.critic_minibatch_size))
        for epoch in range(args.critic_epochs):
            figures = torch.zeros(2, device=device)
            for rows, count in buffer.parts(number, [*seed, epoch]):
                self.optimizer.zero_grad()
                loss = returns.new_zeros(())
                if len(rows):
                    values = self.critic.of_observations(features[rows])
                    losses, clipped = value_losses(values, old[rows], returns[rows], args.value_clip or None)
                    loss = losses.sum() / max(count, 1)
                    figures += torch.stack([losses.detach().sum(), clipped.sum()])
                    loss.backward()
                self._sum_gradients()
                torch.nn.utils.clip_grad_norm_(self.critic.parameters(), _MAX_GRAD_NORM)
                self.optimizer.step()
        loss, clipped = (self._reduce(figures) / max(buffer.total, 1)).tolist()
        return {"value_loss": loss, "clip_ratio": clipped}

    def _features(self, buffer: Buffer) -> torch.Tensor:
        device = next(self.critic.parameters()).device
        return torch.stack([chunk.features for chunk in buffer.chunks]).to(device)

    def _sum_gradients(self) -> None:
        for parameter in self.critic.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._reduce(gradient)

    def save_state(self, folder: str) -> None:
        """Write what a resumed run needs beside the critic, which is part of the policy's folder."""
        torch.save({"optimizer": self.optimizer.state_dict(), "started": self.started}, Path(folder, OPTIMIZER_FILE))

    def load(self, folder: str) -> None:
        """Restore the critic and its state from a checkpoint."""
        self.critic.load_state_dict(Critic.from_pretrained(folder).state_dict())
        state = torch.load(Path(folder, OPTIMIZER_FILE), weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.started = state["started"]


__all__ = ["CriticFitting"]
