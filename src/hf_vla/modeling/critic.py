"""The critic of reinforcement learning: a value function on the policy's backbone states, which stays outside of the policy."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .modeling_vla import VLAPreTrainedModel


class Critic(nn.Module):
    """Estimates the return from an observation: an MLP of four layers on the mean of the backbone's last states, and the state.

    The policy gets no gradient from it. What is best to read is taken from piRL (2510.25889): the backbone rather than the
    action head, more than one layer.

    Args:
        vlm_hidden_size: width of the backbone's states.
        state_dim: dimensions of the robot's state; 0 if the critic does not read it.
        hidden_size: width of the critic's layers.
        num_outputs: of the last layer.
    """

    file_name = "critic.safetensors"
    config_name = "critic.json"

    def __init__(self, vlm_hidden_size: int, state_dim: int = 0, hidden_size: int = 256, *, num_outputs: int = 1):
        super().__init__()
        self.config = {"vlm_hidden_size": vlm_hidden_size, "state_dim": state_dim, "hidden_size": hidden_size}
        self.norm = nn.LayerNorm(vlm_hidden_size)
        widths = [vlm_hidden_size + state_dim, hidden_size, hidden_size, hidden_size]
        hidden = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(hidden_size, num_outputs))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    @classmethod
    def for_policy(cls, policy: VLAPreTrainedModel, hidden_size: int = 256) -> "Critic":
        """Make a new critic, on the policy's device. All values are 0 until `start_from` or training sets others."""
        config = policy.config
        state_dim = config.state_dim if config.state_input == "head" else 0
        return cls(config.vlm_hidden_size, state_dim, hidden_size).to(policy.device)

    def start_from(self, mean_return: float) -> None:
        """Make all values of a new critic the mean return of the first episodes."""
        nn.init.constant_(self.layers[-1].bias, mean_return)

    def forward(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None = None, state: torch.Tensor | None = None
    ) -> torch.Tensor:
        """states (B, L, vlm_hidden_size), mask (B, L), robot's state (B, 1, state_dim) or None -> values, float32 (B,)

        Without a state, a critic that reads it is given zeros.
        """
        return self.of_observations(self.observed(states, attention_mask, state))

    def observed(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None = None, state: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `forward`, but only what is read of it: float32 (B, vlm_hidden_size + state_dim), without gradient, to be kept.

        Raises:
            ValueError: the robot's state has other dimensions than the critic reads.
        """
        return self._with_state(mean_states(states, attention_mask), state)

    def of_observations(self, observed: torch.Tensor) -> torch.Tensor:
        """what `observed` returned -> values, float32 (B,)"""
        return self._outputs(observed)[:, 0]

    def _with_state(self, mean: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """mean state (B, vlm_hidden_size), robot's state (B, 1, state_dim) or None -> (B, vlm_hidden_size + state_dim)"""
        size = self.config["state_dim"]
        if size == 0:
            return mean
        if state is None:
            return torch.cat([mean, mean.new_zeros(len(mean), size)], dim=-1)
        if state.shape[-1] != size:
            raise ValueError(f"this critic reads robot states of {size} dimensions, and was given {state.shape[-1]}")
        return torch.cat([mean, state[:, 0].float()], dim=-1)

    def _outputs(self, observed: torch.Tensor) -> torch.Tensor:
        """what `observed` returned -> the last layer's outputs (B, num_outputs)"""
        size = self.config["vlm_hidden_size"]
        return self.layers(torch.cat([self.norm(observed[:, :size]), observed[:, size:]], dim=-1))

    def value(self, policy: VLAPreTrainedModel, inputs: dict) -> torch.Tensor:
        """Estimate the return from observations, float32 (B,), with gradients for the critic alone.

        Args:
            policy: whose backbone is read.
            inputs: what `predict_action` is given: the processor's output.

        Raises:
            ValueError: the critic is of another backbone, or an input doesn't fit the policy.
        """
        if policy.config.vlm_hidden_size != self.config["vlm_hidden_size"]:
            raise ValueError(
                f"this critic reads states of width {self.config['vlm_hidden_size']}, the policy's backbone has "
                f"{policy.config.vlm_hidden_size}; make one by Critic.for_policy(policy)"
            )
        with torch.no_grad():
            states, mask, state = policy.observation_states(**inputs)
        return self(states, mask, state)

    def save_pretrained(self, folder) -> None:
        """Write `critic.safetensors` and `critic.json` into a folder, such as the policy's."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}, folder / self.file_name
        )
        (folder / self.config_name).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder) -> "Critic":
        """Read what `save_pretrained` wrote.

        Raises:
            OSError: the folder holds no critic.
        """
        folder = Path(folder)
        if missing := [name for name in (cls.config_name, cls.file_name) if not (folder / name).is_file()]:
            raise OSError(
                f"{folder} holds no critic: {' and '.join(missing)} missing; Critic.save_pretrained writes them"
            )
        critic = cls(**json.loads((folder / cls.config_name).read_text(encoding="utf-8")))
        critic.load_state_dict(load_file(folder / cls.file_name))
        return critic


class DistributionalCritic(Critic):
    """Estimates the distribution of the return over bins in [-1, 0], as RECAP's value function does (pi*0.6, 2511.14759).

    Args:
        vlm_hidden_size, state_dim, hidden_size: as for `Critic`.
        num_bins: bins, the first at -1, the last at 0.
    """

    def __init__(self, vlm_hidden_size: int, state_dim: int = 0, hidden_size: int = 256, num_bins: int = 201):
        super().__init__(vlm_hidden_size, state_dim, hidden_size, num_outputs=num_bins)
        self.config["num_bins"] = num_bins
        self.register_buffer("bins", torch.linspace(-1, 0, num_bins), persistent=False)

    def start_from(self, mean_return: float) -> None:
        """Make the bin of the mean return the likeliest."""
        nn.init.zeros_(self.layers[-1].bias)
        with torch.no_grad():
            self.layers[-1].bias[self.bin_of(torch.tensor([mean_return]))] = 1.0

    def bin_of(self, returns: torch.Tensor) -> torch.Tensor:
        """Return the nearest bins of returns in [-1, 0], integers of the same shape."""
        return ((returns.clamp(-1, 0) + 1) * (len(self.bins) - 1)).round().long()

    def logits(self, mean: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        """mean state (B, vlm_hidden_size), robot's state (B, 1, state_dim) or None -> (B, num_bins)"""
        return self._outputs(self._with_state(mean, state))

    def expectation(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_bins) -> values, float32 (B,)"""
        return (logits.float().softmax(dim=-1) * self.bins).sum(dim=-1)

    def of_observations(self, observed: torch.Tensor) -> torch.Tensor:
        """As `Critic`: the mean of the distribution."""
        return self.expectation(self._outputs(observed))


def mean_states(states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean of the attended ones of states (B, L, D): float32 (B, D), without gradient."""
    states = states.detach().float()
    if attention_mask is None:
        return states.mean(dim=1)
    weight = attention_mask[..., None].to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


__all__ = ["Critic", "DistributionalCritic", "mean_states"]
