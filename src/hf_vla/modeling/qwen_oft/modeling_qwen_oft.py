"""QwenOFT: a prompt with one placeholder an action -> the backbone's last state at each -> an MLP -> action chunk."""

import torch
from torch import nn

from ..backbone import build_backbone
from ..losses import ActionTargets
from ..modeling_vla import VLAPreTrainedModel
from ..sampling import SamplingOptions
from .configuration_qwen_oft import QwenOFTConfig


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class RegressionActionHead(nn.Module):
    """States (..., input_dim) -> actions (..., action_dim), as OpenVLA-OFT's MLPResNet and StarVLA's `MLP_ActionHeader`."""

    def __init__(self, input_dim: int, hidden_dim: int, action_dim: int, num_blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_dim) for _ in range(num_blocks))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, action_dim)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.fc1(self.layer_norm1(states.to(self.fc1.weight.dtype))))
        for block in self.blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class QwenOFTForActionPrediction(VLAPreTrainedModel):
    """StarVLA's QwenOFT: action k is regressed from h[N] at the k-th of the last `action_horizon` placeholders."""

    config_class = QwenOFTConfig

    def __init__(self, config: QwenOFTConfig):
        super().__init__(config)
        self.vlm = build_backbone(config.vlm_config)
        self.action_head = RegressionActionHead(config.vlm_hidden_size, 2 * config.vlm_hidden_size, config.action_dim)
        self.post_init()

    def _action_positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids (B, L) -> boolean (B, L), true at the last `action_horizon` placeholders of each sample."""
        horizon, token = self.config.action_horizon, self.config.action_token_id
        if token is None:
            raise ValueError(
                "config.action_token_id is not set: it is the first token id of QwenOFTProcessor's action placeholder in "
                "the backbone's tokenizer, QwenOFTProcessor.config_fields(tokenizer)"
            )
        placeholders = input_ids == token
        counts = placeholders.sum(dim=1)
        if (counts < horizon).any():
            raise ValueError(
                f"the prompts hold {counts.tolist()} action placeholders (token {token}); each needs at least "
                f"{horizon}, one for each action of the chunk. Build them with a QwenOFTProcessor of action_horizon={horizon}"
            )
        from_the_end = placeholders.flip(1).cumsum(1).flip(1)
        return placeholders & (from_the_end <= horizon)

    def _regress(self, input_ids, attention_mask, **inputs) -> torch.Tensor:
        """-> actions (B, action_horizon, action_dim), normalised"""
        positions = self._action_positions(input_ids)
        last = self.backbone_states(input_ids, attention_mask, **inputs)[-1]
        return self.action_head(last[positions].unflatten(0, (len(input_ids), -1)))

    def action_loss(self, targets: ActionTargets, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean absolute error."""
        return targets.mean((self._regress(**inputs).float() - targets.actions.float()).abs())

    def sample_actions(self, options: SamplingOptions, **inputs) -> torch.Tensor:
        return self._regress(**inputs)


__all__ = ["QwenOFTForActionPrediction"]
