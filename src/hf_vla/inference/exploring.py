"""`ExploringPolicy`: a policy that draws its chunks, in batches, and keeps what it learns from; see docs/reinforcement_learning.md."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ..modeling.critic import Critic
from ..modeling.exploration import Exploration
from .observations import states
from .policy import Policy


@dataclass
class SampledChunk:
    """What `ExploringPolicy` keeps of a chunk.

    Args:
        log_prob: of the chunk, as it was drawn.
        trace: the chunk's row of the trace, tensors without the batch dimension.
        observation: what the policy was given, or None if `inputs` and `states` say all.
        inputs: the model's inputs other than the backbone's images, tensors without the batch dimension.
        states: with `keep_states`, the backbone's states (N + 1, L, hidden_size).
        features: what the critic reads, float32 (F,).
    """

    log_prob: float
    trace: dict[str, torch.Tensor]
    observation: Mapping | None
    inputs: dict[str, torch.Tensor] | None = None
    states: torch.Tensor | None = None
    features: torch.Tensor | None = None


class ExploringPolicy:
    """Draws chunks as `sample_chunk` does, for [`~hf_vla.evaluation.collection.Collector`].

    Args:
        policy: whose model draws.
        exploration: how; None is the framework's default.
        critic: what its features are kept of, if given.
        keep_states: keep the backbone's states instead of the images, for learning with a frozen backbone.
        batch_size: observations per call of the model; by default all that there are.
        context: makes a context in which the model is called, such as `accelerator.autocast`.
    """

    def __init__(
        self,
        policy: Policy,
        exploration: Exploration | None = None,
        *,
        critic: Critic | None = None,
        keep_states: bool = False,
        batch_size: int | None = None,
        context=nullcontext,
    ):
        self.policy, self.exploration, self.critic = policy, exploration, critic
        self.keep_states, self.batch_size, self.context = keep_states, batch_size, context
        if policy.guidance != 1:
            raise ValueError(
                f"guidance is {policy.guidance:g}; chunks of a guided policy have no known probability, so leave it out"
            )
        if keep_states and not policy.model.reads_backbone_states:
            raise ValueError(
                f"{type(policy.model).__name__} writes actions with its backbone, whose states can't be kept"
            )

    @property
    def input_contract(self):
        return self.policy.input_contract

    def sample(self, observations: Sequence[Mapping], seeds: Sequence[int]) -> list[tuple[np.ndarray, SampledChunk]]:
        """Draw a chunk for each observation; see `ChunkSampler`."""
        size = self.batch_size or len(observations)
        parts = range(0, len(observations), size)
        return [one for i in parts for one in self._sample(observations[i : i + size], seeds[i : i + size])]

    @torch.no_grad()
    def _sample(self, observations, seeds) -> list[tuple[np.ndarray, SampledChunk]]:
        policy, model = self.policy, self.policy.model
        batch = policy.prepare(observations)
        state = states(batch)
        inputs = dict(policy.model_inputs(batch))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        known, features = None, None
        with self.context():
            if model.reads_backbone_states and (self.critic is not None or self.keep_states):
                known = self._backbone_states(inputs)
            if self.critic is not None:
                if known is None:
                    seen = model.observation_states(**inputs)
                else:
                    seen = (known[-1], inputs.get("attention_mask"), inputs.get("state"))
                features = self.critic.observed(*seen).cpu()
            own = {} if known is None else {"known_states": known}
            drawn, log_prob, trace = model.sample_chunk(
                **inputs, **own, exploration=self.exploration, generator=generators
            )
        actions = policy.processor.unnormalize_actions(drawn, policy.unnorm_key, state)
        kept = None
        if self.keep_states:
            kept = torch.stack([x.cpu() for x in known], dim=1)  # (B, N + 1, L, hidden_size)
            names = ("input_ids", "attention_mask", "state", *model.head_inputs)
            inputs = {name: inputs[name].cpu() for name in names if inputs.get(name) is not None}
        trace = {name: x.cpu() for name, x in trace.items()}
        return [
            (
                actions[i],
                SampledChunk(
                    log_prob=log_prob[i].item(),
                    trace={name: x[i] for name, x in trace.items()},
                    observation=None if self.keep_states else batch[i],
                    inputs={name: x[i] for name, x in inputs.items()} if self.keep_states else None,
                    states=None if kept is None else kept[i],
                    features=None if features is None else features[i],
                ),
            )
            for i in range(len(batch))
        ]

    def _backbone_states(self, inputs: Mapping) -> list[torch.Tensor]:
        model = self.policy.model
        of_head = ("state", *model.head_inputs)
        return model.backbone_states(**{name: x for name, x in inputs.items() if name not in of_head})


class PredictingPolicy:
    """The policy as it is evaluated, in batches, for [`~hf_vla.evaluation.collection.Collector`]: nothing is kept of a chunk.

    Args:
        policy: whose `infer` predicts.
        context: makes a context in which the model is called.
    """

    def __init__(self, policy: Policy, context=nullcontext):
        self.policy, self.context = policy, context

    @property
    def input_contract(self):
        return self.policy.input_contract

    def sample(self, observations: Sequence[Mapping], seeds: Sequence[int]) -> list[tuple[np.ndarray, None]]:
        """Predict a chunk for each observation; see `ChunkSampler`."""
        with torch.no_grad(), self.context():
            return [(chunk, None) for chunk in self.policy.infer(list(observations), seed=list(seeds))]


__all__ = ["ExploringPolicy", "PredictingPolicy", "SampledChunk"]
