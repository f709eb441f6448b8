"""Base of the flow-matching frameworks."""

import torch

from .action_head import FlowMatchingActionHead
from .denoising_policy import DenoisingPolicy
from .flow_exploration import FlowExploration
from .sampling import PreparedOptions, SamplingOptions


class FlowMatchingPolicy(DenoisingPolicy):
    """Base of PI, PI_v3, GR00T and Dual; their head is a `FlowMatchingActionHead`."""

    sampling_options = DenoisingPolicy.sampling_options | {"guidance"}
    exploration_settings = frozenset(
        {"noisy_steps", "noise_level", "noise_correlation", "learned_std", "num_inference_steps", "executed_steps"}
    )
    trace_entries = ("before", "after", "step", "number", "timestep")

    action_head: FlowMatchingActionHead

    def prepared_options(self, options: SamplingOptions, batch: int) -> PreparedOptions:
        return super().prepared_options(options, batch if options.guidance is None else batch // 2)

    def draw_chunk(self, exploration, generator, *, state: torch.Tensor | None = None, **inputs):
        conditioning = self.action_head.transformer.prepare(self.conditioning(**inputs))
        drawing = FlowExploration(self.action_head, exploration, conditioning, state)
        actions, trace = drawing.draw(generator)
        return actions, drawing.log_prob(trace), trace

    def log_prob_of(self, trace, exploration, *, state: torch.Tensor | None = None, **inputs) -> torch.Tensor:
        # One call needs no prepared keys and values, which FSDP couldn't compute outside of the blocks.
        return FlowExploration(self.action_head, exploration, self.conditioning(**inputs), state).log_prob(trace)

    def _std_sizes(self) -> dict[str, int]:
        cross = [block for block in self.action_head.transformer.transformer_blocks if block.is_cross]
        return {
            "num_steps": self.config.num_inference_steps,
            "feature_size": cross[-1].attn1.to_k.in_features,
        }


__all__ = ["FlowMatchingPolicy"]
