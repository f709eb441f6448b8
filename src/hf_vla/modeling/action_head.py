"""Action heads that denoise: their base, and the flow-matching head that PI, PI_v3, GR00T and Dual share."""

import math

import torch
from torch import nn

from . import flow_matching
from .attention import AttentionRecorder
from .configuration_vla import DiffusionTransformerConfig, DiTConfig, FlowMatchingConfig
from .diffusion_transformer import Conditioning, DiffusionTransformer
from .linear import Linear
from .losses import ActionTargets
from .sampling import DenoisingStep, PreparedOptions, SamplingOptions, guided


class MLP(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int):
        super().__init__()
        self.layer1 = Linear(input_dim, hidden_dim)
        self.layer2 = Linear(hidden_dim, output_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer2(nn.functional.relu(self.layer1(x)))


class ActionEncoder(nn.Module):
    """A noisy action and its timestep -> one token: layer3(swish(layer2([layer1(action), sinusoids(timestep)])))."""

    def __init__(self, action_dim: int, hidden_size: int):
        super().__init__()
        self.layer1 = Linear(action_dim, hidden_size)
        self.layer2 = Linear(2 * hidden_size, hidden_size)
        self.layer3 = Linear(hidden_size, hidden_size)

    def forward(self, actions: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """actions (B, R, H, action_dim), timestep (B, R) integers or (1, 1) -> (B, R, H, hidden_size)"""
        embedded = self.layer1(actions)
        half = embedded.shape[-1] // 2
        k = torch.arange(half, dtype=torch.float32, device=actions.device)
        angles = timestep[..., None, None].float() * torch.exp(-math.log(10000) * k / half)
        tau = torch.cat([angles.sin(), angles.cos()], dim=-1).to(embedded.dtype).expand_as(embedded)
        return self.layer3(nn.functional.silu(self.layer2(torch.cat([embedded, tau], dim=-1))))


class DenoisingActionHead(nn.Module):
    """Base of heads that denoise a chunk's tokens by a diffusion transformer on the backbone's states.

    Args:
        config: sizes and dropout.
        hidden_size: width of the tokens.
        num_layers: transformer blocks.
        key_size: width of the states that cross-attention reads.
        output_dim: width of the transformer's output head.
        mlp_hidden_size: inner width of `state_encoder`.
        use_output_head: pass the tokens through the transformer's AdaLN output head. Layer-wise flow-matching heads (PI, PI_v3)
            decode the last block's tokens; they have the output head, unused, because their checkpoints do.
        sinusoidal_positions: as for `DiffusionTransformer`.
    """

    def __init__(
        self,
        config: DiffusionTransformerConfig,
        *,
        hidden_size: int,
        num_layers: int,
        key_size: int,
        output_dim: int,
        mlp_hidden_size: int,
        use_output_head: bool,
        sinusoidal_positions: bool = False,
    ):
        super().__init__()
        self.config = config
        self.use_output_head = use_output_head
        self.transformer = DiffusionTransformer(
            config,
            hidden_size=hidden_size,
            num_layers=num_layers,
            head_dim=config.attention_head_dim,
            key_size=key_size,
            output_dim=output_dim,
            dropout=config.dropout,
            final_dropout=config.final_dropout,
            interleave_self_attention=config.interleave_self_attention,
            sinusoidal_positions=sinusoidal_positions,
        )
        self.state_encoder = MLP(config.state_dim, mlp_hidden_size, hidden_size) if config.state_dim else None
        for name, module in self.token_modules(hidden_size, mlp_hidden_size).items():
            self.add_module(name, module)
        self.future_tokens = nn.Embedding(config.num_future_tokens, hidden_size)
        self.position_embedding = (
            nn.Embedding(config.max_action_positions, hidden_size) if config.use_position_embedding else None
        )

    def token_modules(self, hidden_size: int, mlp_hidden_size: int) -> dict[str, nn.Module]:
        """Make the modules that turn actions to tokens and back, by name; a head's own."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return self.future_tokens.weight.dtype

    def denoise(
        self,
        tokens: torch.Tensor,
        conditioning: Conditioning,
        temb: torch.Tensor,
        *,
        state: torch.Tensor | None = None,
        modulations: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        recorder: AttentionRecorder | None = None,
    ) -> torch.Tensor:
        """What the transformer makes of a chunk's embedded tokens (B, R, N, D): (B, R, N, D), or (B, R, N, output_dim).

        Args:
            temb: the timestep's embedding (B, R, D) or (1, 1, D).
            state: (B, 1, state_dim), normalised, or None.
            modulations, recorder: as for `DiffusionTransformer.forward`.
        """
        number = tokens.shape[-2]
        tokens = self.transformer(
            self._sequence(tokens, state), conditioning, temb, modulations=modulations, last=number, recorder=recorder
        )
        return self.transformer.output(tokens, temb) if self.use_output_head else tokens

    def _sequence(self, tokens: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Add positions, and the state's token and the future tokens before the others: (B, R, [1 + F +] N, D)."""
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding.weight[: tokens.shape[-2]]
        if not (self.transformer.interleave_self_attention or self.transformer.sinusoidal_positions):
            return tokens  # no block mixes or counts tokens, so state and future tokens can't change the actions
        batch, copies = tokens.shape[:2]
        prefix = [self.future_tokens.weight.expand(batch, copies, -1, -1)]
        if state is not None:
            prefix.insert(0, self.state_encoder(state.to(self.dtype))[:, None].expand(-1, copies, -1, -1))
        return torch.cat([*prefix, tokens], dim=-2)

    def drawn_shape(self, targets: ActionTargets) -> tuple[int, int, int]:
        """The shape (R * B, H, action_dim) of a training step's noise: R from the given draw, else from the config.

        Raises:
            ValueError: the given noise or timesteps have another shape.
        """
        batch, noise, timestep = len(targets.actions), targets.noise, targets.timestep
        given = {name: x for name, x in (("noise", noise), ("timestep", timestep)) if x is not None}
        rows = {len(x) for x in given.values()} or {self.config.repeated_diffusion_steps * batch}
        if len(rows) > 1 or max(rows) % batch:
            shapes = {name: tuple(x.shape) for name, x in given.items()}
            raise ValueError(f"{shapes} do not fit {batch} samples: both need R * {batch} rows, in tiled order")
        shape = (rows.pop(), *targets.actions.shape[1:])
        if noise is not None and noise.shape != shape:
            copies = shape[0] // batch
            raise ValueError(f"noise has shape {tuple(noise.shape)}; {copies} draws of {batch} samples need {shape}")
        return shape

    def given_noise(self, options: SamplingOptions, shape: tuple[int, int, int]) -> torch.Tensor | None:
        """The noise of the options; `shape` is (B, H, action_dim).

        Raises:
            ValueError: it has another shape, and not R times as many rows.
        """
        noise = options.noise
        if noise is not None and (noise.shape[1:] != shape[1:] or not len(noise) or len(noise) % shape[0]):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; this policy draws from {shape}, or R times as many rows for R draws"
            )
        return noise

    def reporter(self, options: SamplingOptions, batch: int, num_steps: int):
        """What `options.on_step` needs: a recorder or None, and a function (step, before, after) or None."""
        if options.output_attentions and options.guidance is not None:
            raise ValueError("output_attentions and guidance can't be given together: leave one out")
        recorder = AttentionRecorder() if options.output_attentions else None

        def report(step: int, before: torch.Tensor, after: torch.Tensor) -> None:
            weights = () if recorder is None else recorder.take()
            attention = tuple(_of_each_draw(w, len(before) // batch) for w in weights)
            options.on_step(DenoisingStep(step, step / num_steps, before, after, attention))

        return recorder, None if options.on_step is None else report


class FlowMatchingActionHead(DenoisingActionHead):
    """Predicts the velocity of a noisy action chunk from the backbone's states.

    Args:
        config: sizes, noise schedule, dropout.
        hidden_size, num_layers, key_size, use_output_head: as for `DenoisingActionHead`; GR00T and Dual use the output head.
        mlp_hidden_size: inner width of `state_encoder` and `action_decoder`.
        clamp_time: clamp training times at 0 (GR00T, Dual).
    """

    def __init__(
        self,
        config: FlowMatchingConfig,
        *,
        hidden_size: int,
        num_layers: int,
        key_size: int,
        mlp_hidden_size: int = 1024,
        use_output_head: bool = False,
        clamp_time: bool = False,
    ):
        super().__init__(
            config,
            hidden_size=hidden_size,
            num_layers=num_layers,
            key_size=key_size,
            output_dim=config.output_dim,
            mlp_hidden_size=mlp_hidden_size,
            use_output_head=use_output_head,
        )
        self.clamp_time = clamp_time

    def token_modules(self, hidden_size: int, mlp_hidden_size: int) -> dict[str, nn.Module]:
        decoder_input = self.config.output_dim if self.use_output_head else hidden_size
        return {
            "action_encoder": ActionEncoder(self.config.action_dim, hidden_size),
            "action_decoder": MLP(decoder_input, mlp_hidden_size, self.config.action_dim),
        }

    @classmethod
    def from_dit_config(cls, config: DiTConfig) -> "FlowMatchingActionHead":
        """Build the head of GR00T and Dual: every block that attends the backbone attends the same state of it."""
        return cls(
            config,
            hidden_size=config.action_hidden_size,
            num_layers=config.num_action_layers,
            key_size=config.vlm_hidden_size,
            mlp_hidden_size=config.mlp_hidden_size or config.output_dim,
            use_output_head=True,
            clamp_time=True,
        )

    def velocity(
        self,
        noisy_actions: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        *,
        state: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        modulations: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        recorder: AttentionRecorder | None = None,
    ) -> torch.Tensor:
        """The velocity at `noisy_actions` (B, R, H, A) and integer `timestep` (B, R), of the same shape.

        Args:
            state: (B, 1, state_dim), normalised, or None.
            temb, modulations: the timestep's embedding (B, R, D) or (1, 1, D), and what the blocks make of it, if known.
            recorder: as for `DiffusionTransformer.forward`.
        """
        tokens = self.action_encoder(noisy_actions.to(self.dtype), timestep)
        if temb is None:
            temb = self.transformer.timestep_encoder(timestep)
        states = self.denoise(tokens, conditioning, temb, state=state, modulations=modulations, recorder=recorder)
        return self.action_decoder(states)

    def loss(
        self, conditioning: Conditioning, targets: ActionTargets, *, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of the velocity over R noise draws of each sample: of the batch (), of each sample (B,).

        Args:
            conditioning: states of B observations.
            targets: their actions. `noise` (R * B, H, action_dim) and `timestep` (R * B,), t in [0, 1], are in tiled order
                b0 b1 … b0 b1 …; if None they are drawn: noise first, then time, so that a seed gives StarVLA's draw.
            state: (B, 1, state_dim), normalised, or None.
        """
        config, actions, batch = self.config, targets.actions, targets.actions.shape[0]
        noise, timestep, shape = targets.noise, targets.timestep, self.drawn_shape(targets)
        if noise is None:
            noise = torch.randn(shape, device=actions.device, dtype=torch.float32)
        if timestep is None:
            timestep = flow_matching.sample_time(
                shape[0],
                config.noise_beta_alpha,
                config.noise_beta_beta,
                config.noise_s,
                clamp=self.clamp_time,
                device=actions.device,
            )

        noise, time = untile(noise, batch).float(), untile(timestep, batch).float()
        target = actions[:, None].float() - noise
        noisy = flow_matching.interpolate(noise, actions[:, None].float(), time[..., None, None])
        bucket = flow_matching.time_to_bucket(time, config.num_timestep_buckets)
        velocity = self.velocity(noisy, bucket, conditioning, state=state)
        return targets.mean((velocity.float() - target) ** 2)

    def prepared(self, options: SamplingOptions, batch: int, device: torch.device) -> PreparedOptions:
        """Draw the noise of B observations, and bring all on the device.

        Raises:
            ValueError: noise or previous chunk don't fit the policy.
        """
        shape = (batch, self.config.action_horizon, self.config.action_dim)
        if (noise := self.given_noise(options, shape)) is None:
            drawn_on = device if options.generator is None else options.generator.device
            noise = torch.randn(shape, generator=options.generator, device=drawn_on, dtype=torch.float32)
        real_time = options.real_time_chunking
        if real_time is not None:
            real_time = real_time.for_chunks(shape, len(noise) // batch, device).guidance(shape[1])
        given = {
            "noise": noise.to(device, torch.float32),
            "generator": None,
            "num_inference_steps": options.num_inference_steps or self.config.num_inference_steps,
            "real_time_chunking": real_time,
        }
        return PreparedOptions(**vars(options) | given)

    def sample(
        self,
        conditioning: Conditioning,
        options: SamplingOptions | None = None,
        *,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw action chunks: Euler integration from noise.

        Args:
            conditioning: states of B observations; keys and values are computed once from them. With guidance, of 2 B: those
                of prompts with a condition, then those of prompts without.
            options: as in [`~hf_vla.modeling.modeling_vla.VLAPreTrainedModel.predict_action`].
            state: (B, 1, state_dim), normalised, or None.

        Returns:
            float32 tensor (R * B, H, action_dim), normalised, in the order of the noise.
        """
        device, batch = conditioning.states[0].device, conditioning.states[0].shape[0]
        options = options or SamplingOptions()
        batch = batch if options.guidance is None else batch // 2
        if not isinstance(options, PreparedOptions):
            options = self.prepared(options, batch, device)
        config, num_steps, real_time = self.config, options.num_inference_steps, options.real_time_chunking
        recorder, report = self.reporter(options, batch, num_steps)
        conditioning = self.transformer.prepare(conditioning, recorder)
        buckets = torch.tensor(flow_matching.inference_buckets(num_steps, config.num_timestep_buckets), device=device)
        tembs = self.transformer.timestep_encoder(buckets)  # (steps, D): all steps at once
        modulations = self.transformer.modulations(tembs)

        def velocity(x: torch.Tensor, step: int) -> torch.Tensor:
            noisy = untile(x, batch)
            predicted = self.velocity(
                noisy if options.guidance is None else torch.cat([noisy, noisy]),
                buckets[step].view(1, 1),
                conditioning,
                state=state,
                temb=tembs[step].view(1, 1, -1),
                modulations=[(gain[step], shift[step]) for gain, shift in modulations],
                recorder=recorder,
            )
            return tile(predicted if options.guidance is None else guided(predicted, options.guidance))

        if real_time is None:
            return flow_matching.integrate(velocity, options.noise, num_steps, report)
        chunk = flow_matching.integrate(real_time.guide(velocity, num_steps), options.noise, num_steps, report)
        return real_time.with_executed(chunk)


def untile(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Tiled rows b0 b1 … b0 b1 … (R * B, …) -> (B, R, …)"""
    return x.unflatten(0, (-1, batch)).transpose(0, 1)


def tile(x: torch.Tensor) -> torch.Tensor:
    """(B, R, …) -> tiled rows (R * B, …)"""
    return x.transpose(0, 1).flatten(0, 1)


def _of_each_draw(weights: torch.Tensor | None, copies: int) -> torch.Tensor | None:
    """A block's attention weights (B, heads, R * S, K) -> (R * B, heads, S, K), in tiled order"""
    return None if weights is None else tile(weights.unflatten(2, (copies, -1)).transpose(1, 2))


__all__ = ["DenoisingActionHead", "FlowMatchingActionHead", "tile", "untile"]
