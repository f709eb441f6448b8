"""QwenOFT: a prompt with one placeholder an action -> the backbone's last state at each -> an MLP -> action chunk."""

import torch
from torch import nn

from ..backbone import build_backbone
from ..losses import masked_mean
from ..modeling_vla import VLAOutput, VLAPreTrainedModel
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

    def _regress(self, input_ids, attention_mask, **vlm_inputs) -> torch.Tensor:
        """-> actions (B, action_horizon, action_dim), normalised"""
        positions = self._action_positions(input_ids)
        last = self.backbone_states(input_ids, attention_mask, **vlm_inputs)[-1]
        return self.action_head(last[positions].unflatten(0, (len(input_ids), -1)))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        vlm_batch: dict[str, torch.Tensor] | None = None,
        **vlm_inputs,
    ) -> VLAOutput:
        """The mean absolute error of a batch with actions, or the backbone's language-model loss of one with labels.

        Args:
            input_ids, attention_mask: (B, L); prompts with at least `action_horizon` action placeholders.
            actions: (B, T, action_dim), normalised; the last `action_horizon` steps are the target.
            action_mask: boolean (B, T), false where a step is padding and does not count.
            noise, timestep: not read, as nothing is drawn; here so that all policies are called alike.
            labels: (B, L) token ids, -100 where a token does not count; in place of actions, for co-training.
            vlm_batch: a batch of image-text samples with labels, for co-training: its language-model loss is added.
            vlm_inputs: the backbone's other inputs: `pixel_values`, and what else its family has.
        """
        if labels is not None:
            return self.language_model_output(labels, actions, input_ids, attention_mask, **vlm_inputs)
        actions, action_mask = self.target_actions(len(input_ids), actions, action_mask)
        predicted = self._regress(input_ids, attention_mask, **vlm_inputs)
        loss = masked_mean((predicted.float() - actions.float()).abs(), action_mask)
        return self.with_language_model_loss(VLAOutput(loss=loss, action_loss=loss), vlm_batch)

    @torch.no_grad()
    def predict_action(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        **vlm_inputs,
    ) -> torch.Tensor:
        """Regress one action chunk a sample.

        Args:
            input_ids, attention_mask, vlm_inputs: as in `forward`.
            noise, generator, num_inference_steps: not read, as nothing is drawn; here so that all policies are called alike.
            actions, action_mask: not read; a training batch may be passed as it is.

        Returns:
            float32 tensor (B, action_horizon, action_dim), normalised.
        """
        return self._regress(input_ids, attention_mask, **vlm_inputs).float()


__all__ = ["QwenOFTForActionPrediction"]
