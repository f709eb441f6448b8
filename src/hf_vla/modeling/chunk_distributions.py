"""Action chunks as draws from a distribution, for reinforcement learning: sampling, and the log-probability of a sample."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .exploration import Exploration, LearnedStd

#: Where random numbers come from: one generator for the batch, one for each observation, or torch's own.
Generators = torch.Generator | Sequence[torch.Generator] | None

#: What `sample_chunk` returns beside the actions and `chunk_log_prob` is given: tensors with one row per observation.
Trace = dict[str, torch.Tensor]


class ChunkDistribution:
    """Mixin of policies: `sample_chunk` and `chunk_log_prob`, on top of what each kind of framework implements.

    A framework names the settings of [`~hf_vla.modeling.exploration.Exploration`] that it reads in `exploration_settings`, and
    the entries of its traces in `trace_entries`, and implements `draw_chunk` and `log_prob_of`.
    """

    exploration_settings: frozenset[str] = frozenset()
    trace_entries: tuple[str, ...] = ()

    @torch.no_grad()
    def sample_chunk(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        state: torch.Tensor | None = None,
        exploration: Exploration | None = None,
        generator: Generators = None,
        **inputs,
    ) -> tuple[torch.Tensor, torch.Tensor, Trace]:
        """Draw one action chunk per observation, with what `chunk_log_prob` needs to tell its log-probability again.

        Args:
            input_ids, attention_mask, state, inputs: as in `predict_action`.
            exploration: how to draw; by default the framework's.
            generator: where random numbers come from, by default torch's own generator. Given a list with one generator for
                each observation, an observation's draw does not depend on the rest of the batch.

        Returns:
            The actions, float32 (B, action_horizon, action_dim), normalised, as drawn: not clipped. Their log-probabilities,
            float32 (B,). And the trace: a dict of tensors with B rows, which may be selected and concatenated.

        Raises:
            ValueError: the policy's dropout is on, a setting is not this framework's, or an argument doesn't fit the policy.
        """
        exploration = self._checked_exploration(exploration)
        if isinstance(generator, Sequence) and len(generator) != len(input_ids):
            raise ValueError(f"{len(generator)} generators for {len(input_ids)} observations; give one for each")
        inputs = self._checked_observation(input_ids, attention_mask, state, inputs)
        actions, log_prob, trace = self.draw_chunk(exploration, generator, **inputs)
        return actions.float(), log_prob, trace

    def chunk_log_prob(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        trace: Trace,
        state: torch.Tensor | None = None,
        exploration: Exploration | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Compute the log-probability of sampled chunks, with gradients.

        It is the log-density of all that was drawn: of the noise in several denoising steps (not of the noise they start from,
        whose density does not depend on the policy), or of several tokens, the sum. Before an update it is the one that
        `sample_chunk` returned, up to rounding. In policies that attend padding (`policy.attends_padding`), batches must be the
        same for that.

        Args:
            input_ids, attention_mask, state, inputs: as in `predict_action`.
            trace: of `sample_chunk`, its rows in the order of the observations.
            exploration: as given to `sample_chunk`.

        Returns:
            float32 (B,).

        Raises:
            ValueError: the policy's dropout is on, the trace is another framework's or has other rows, or an argument doesn't
                fit the policy.
        """
        exploration = self._checked_exploration(exploration)
        inputs = self._checked_observation(input_ids, attention_mask, state, inputs)
        if set(trace) != set(self.trace_entries):
            raise ValueError(
                f"the trace holds {', '.join(trace)}; {type(self).__name__}'s hold {', '.join(self.trace_entries)}. Give the "
                "trace that this policy's sample_chunk returned"
            )
        if wrong := {name: len(x) for name, x in trace.items() if len(x) != len(input_ids)}:
            raise ValueError(f"the trace has {wrong} rows; {len(input_ids)} observations need as many")
        trace = {name: x.to(input_ids.device) for name, x in trace.items()}
        return self.log_prob_of(trace, exploration, **inputs)

    def observation_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        state: torch.Tensor | None = None,
        **inputs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return what a critic reads: the backbone's last states (B, L, hidden_size), their mask (B, L), and the robot's state.

        Args:
            input_ids, attention_mask, state, inputs: as in `predict_action`.
        """
        inputs = self._checked_observation(input_ids, attention_mask, state, inputs)
        of_backbone = {name: x for name, x in inputs.items() if name not in ("state", *self.head_inputs)}
        return self.backbone_states(**of_backbone)[-1], attention_mask, state

    def draw_chunk(
        self, exploration: Exploration, generator: Generators, **inputs
    ) -> tuple[torch.Tensor, torch.Tensor, Trace]:
        """Draw chunks: what `sample_chunk` returns. It is given the observation as `sample_actions` is."""
        raise NotImplementedError(f"{type(self).__name__} has no draw_chunk")

    def log_prob_of(self, trace: Trace, exploration: Exploration, **inputs) -> torch.Tensor:
        """Compute the log-probabilities (B,) of traces. It is given the observation as `sample_actions` is."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob_of")

    def new_learned_std(self, **settings) -> LearnedStd:
        """Make a [`~hf_vla.modeling.exploration.LearnedStd`] for `Exploration(learned_std=)` of this policy.

        Args:
            settings: `min_std`, `max_std`; `num_steps` if the exploration sets other denoising steps than the config.

        Raises:
            ValueError: the framework draws tokens.
        """
        if "learned_std" not in self.exploration_settings:
            raise ValueError(f"{type(self).__name__} draws tokens, which have no standard deviation; set temperature")
        return LearnedStd(self.config.action_dim, **{**self._std_sizes(), **settings}).to(self.device)

    def _std_sizes(self) -> dict[str, int]:
        return {}

    def _checked_exploration(self, exploration: Exploration | None) -> Exploration:
        exploration = exploration or Exploration()
        if foreign := [name for name in exploration.given if name not in self.exploration_settings]:
            raise ValueError(
                f"{type(self).__name__} does not read {', '.join(foreign)} of its exploration, only "
                f"{', '.join(sorted(self.exploration_settings))}; leave it out"
            )
        executed, horizon = exploration.executed_steps, self.config.action_horizon
        if executed is not None and executed > horizon:
            raise ValueError(f"executed_steps is {executed}; a chunk of this policy has {horizon}")
        raise_if_dropout(self)
        return exploration


def raise_if_dropout(policy: nn.Module) -> None:
    """Raise a ValueError if dropout is on in any part of the policy: log-probabilities would be noise."""
    for name, module in policy.named_modules():
        if module.training:
            rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
            if isinstance(rate, float) and rate > 0:
                raise ValueError(
                    f"dropout is on ({name}, {rate}): a chunk would have another log-probability at each call. Call "
                    "policy.eval(), in which there are gradients too, or set the configuration's dropout to 0"
                )


def draw(
    function: Callable, shape: Sequence[int], generator: Generators, device: torch.device, **options
) -> torch.Tensor:
    """Draw numbers by `torch.randn` or the like, on the generator's device if there is one, and bring them on the device.

    Args:
        function: called as `function(shape, generator=, device=, **options)`.
        shape: (B, …).
        generator: with one for each of the B rows, each row is a draw of its own.
    """
    if isinstance(generator, Sequence):
        rows = [function((1, *shape[1:]), generator=own, device=own.device, **options).to(device) for own in generator]
        return torch.cat(rows)
    drawn_on = device if generator is None else generator.device
    return function(tuple(shape), generator=generator, device=drawn_on, **options).to(device)


def draw_normal(shape: Sequence[int], generator: Generators, device: torch.device) -> torch.Tensor:
    """Draw float32 numbers from N(0, 1); see `draw`."""
    return draw(torch.randn, shape, generator, device, dtype=torch.float32)


def correlated(noise: torch.Tensor, correlation: float | None) -> torch.Tensor:
    """Return white noise (…, H, A) as a first-order autoregressive process over its H steps, of the same variance."""
    if not correlation:
        return noise
    steps = [noise[..., 0, :]]
    for new in noise.unbind(dim=-2)[1:]:
        steps.append(correlation * steps[-1] + math.sqrt(1 - correlation**2) * new)
    return torch.stack(steps, dim=-2)


def gaussian_log_prob(
    x: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    executed: int | None,
    correlation: float | None = None,
) -> torch.Tensor:
    """Compute the log-density of x = mean + std noise, of (B, …, H, A), summed over all but the first dimension: float32 (B,).

    Args:
        std: broadcastable to `mean`.
        executed: how many of the H steps are summed over; None is all.
        correlation: of the noise's neighbouring steps, as in `correlated`; None is white noise.
    """
    std = std.float().expand_as(mean)
    noise, log_std = (x.float() - mean.float()) / std, std.log()
    if correlation:
        spread = math.sqrt(1 - correlation**2)  # of a step, given the one before
        following = (noise[..., 1:, :] - correlation * noise[..., :-1, :]) / spread
        noise = torch.cat([noise[..., :1, :], following], dim=-2)
        log_std = torch.cat([log_std[..., :1, :], log_std[..., 1:, :] + math.log(spread)], dim=-2)
    each = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    return each[..., :executed, :].flatten(1).sum(dim=1)


__all__ = [
    "ChunkDistribution",
    "Generators",
    "Trace",
    "correlated",
    "draw",
    "draw_normal",
    "gaussian_log_prob",
    "raise_if_dropout",
]
