"""What the flow-matching frameworks share: a loss and a sampler around the conditioning that each framework defines."""

from collections.abc import Callable

import torch

from .action_head import FlowMatchingActionHead
from .diffusion_transformer import Conditioning
from .modeling_vla import VLAOutput, VLAPreTrainedModel
from .real_time_chunking import DenoisingStep


class FlowMatchingPolicy(VLAPreTrainedModel):
    """Base of PI, PI_v3, GR00T and Dual.

    A framework builds `self.vlm` and `self.action_head` in `__init__`, and says in `_condition` what the head reads of them.
    """

    #: whether the head reads the robot's state as a token; otherwise the state is text in the prompt
    state_in_head = True

    action_head: FlowMatchingActionHead

    def _condition(self, input_ids, attention_mask, **inputs) -> Conditioning:
        """The states that each block of the head attends, in the head's dtype, and which of them it may attend."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        vlm_batch: dict[str, torch.Tensor] | None = None,
        **vlm_inputs,
    ) -> VLAOutput:
        """The flow-matching loss of a batch with actions, or the backbone's language-model loss of one with labels.

        Args:
            input_ids, attention_mask: (B, L).
            actions: (B, T, action_dim), normalised; the last `action_horizon` steps are the target.
            action_mask: boolean (B, T), false where a step is padding and does not count.
            noise, timestep: (R * B, H, action_dim) and (R * B,), tiled (b0 b1 … b0 b1 …), to fix the draw.
            state: (B, 1, state_dim), normalised, where the framework's head reads it.
            labels: (B, L) token ids, -100 where a token does not count; in place of actions, for co-training.
            vlm_batch: a batch of image-text samples with labels, for co-training: its language-model loss is added.
            vlm_inputs: the backbone's other inputs: `pixel_values`, and what else its family has.
        """
        if labels is not None:
            return self.language_model_output(labels, actions, input_ids, attention_mask, **vlm_inputs)
        actions, action_mask = self.target_actions(len(input_ids), actions, action_mask)
        self._check_state(state, len(input_ids))
        conditioning = self._condition(input_ids, attention_mask, **vlm_inputs)
        loss = self.action_head.loss(conditioning, actions, state, noise, timestep, action_mask)
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
        state: torch.Tensor | None = None,
        previous_chunk: torch.Tensor | None = None,
        inference_delay: int = 0,
        max_guidance_weight: float = 5.0,
        on_step: Callable[[DenoisingStep], None] | None = None,
        output_attentions: bool = False,
        **vlm_inputs,
    ) -> torch.Tensor:
        """Draw one action chunk a sample, or several.

        With `previous_chunk`, by real-time chunking (Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking
        Flow Policies", arXiv 2506.07339): the new chunk continues the previous one, part of which is executed while the new
        one is computed. See `docs/real_time_chunking.md`.

        Args:
            input_ids, attention_mask, state, vlm_inputs: as in `forward`.
            noise: (B, action_horizon, action_dim), drawn from `generator` where None. With (R * B, …), in the tiled order of
                `forward`, R chunks a sample are drawn: the observations are read once, whatever R.
            num_inference_steps: denoising steps, by default the config's.
            actions, action_mask: not read; a training batch may be passed as it is.
            previous_chunk: (B, H', action_dim), normalised, 1 <= H' <= action_horizon: what was not yet executed of the
                previous chunk when the observation was taken, so that its step i is the new chunk's step i. Steps from H' on
                are free. Pass fewer steps to free more.
            inference_delay: d, 0 <= d <= H', the steps of `previous_chunk` that are executed before the new chunk is ready.
                They have full weight, and are returned as given; execute the new chunk from step d on. The weight then
                decays, see [`~hf_vla.modeling.flow_matching.overlap_weights`].
            max_guidance_weight: beta of the paper, with its default. Beyond `num_inference_steps`, guidance can overshoot. 0
                switches guidance off.
            on_step: called after each denoising step with what it did, a
                [`~hf_vla.modeling.real_time_chunking.DenoisingStep`].
            output_attentions: give `on_step` the action head's attention weights too. Flash and SDPA kernels have none: in
                this call the head's attention is written out instead, so that predictions may differ in rounding.

        Returns:
            float32 tensor (B, action_horizon, action_dim), normalised; (R * B, …), in the order of the noise.

        Raises:
            ValueError: `previous_chunk` has another shape or holds NaN, `inference_delay` is out of range or without
                `previous_chunk`, or another argument does not fit the policy.
        """
        self._check_state(state, len(input_ids))
        conditioning = self._condition(input_ids, attention_mask, **vlm_inputs)
        return self.action_head.sample(
            conditioning,
            state,
            noise,
            generator,
            num_inference_steps,
            previous_chunk,
            inference_delay,
            max_guidance_weight,
            on_step,
            output_attentions,
        )

    def _check_state(self, state: torch.Tensor | None, batch: int) -> None:
        if state is None:
            return
        if not self.state_in_head:
            raise ValueError(
                f"{type(self).__name__} reads the state as text in the prompt: give it to the processor, not to the model"
            )
        if self.action_head.state_encoder is None:
            raise ValueError("this policy has no state encoder (state_dim is 0); leave `state` out")
        needed = (batch, 1, self.config.state_dim)
        if state.shape != needed:
            raise ValueError(f"state has shape {tuple(state.shape)}; this policy needs {needed}")


__all__ = ["FlowMatchingPolicy"]
