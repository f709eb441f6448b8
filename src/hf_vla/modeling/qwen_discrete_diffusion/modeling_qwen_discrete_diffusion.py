"""QwenDiscreteDiffusion: every backbone layer -> one block of an equally wide classifier of masked action tokens -> chunk."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from ..action_head import DenoisingActionHead, tile, untile
from ..backbone import build_backbone
from ..chunk_distributions import Trace, draw_normal
from ..denoising_policy import DenoisingPolicy
from ..diffusion_transformer import Conditioning
from ..exploration import Exploration
from ..losses import ActionTargets
from ..real_time_chunking import RealTimeChunking
from ..sampling import PreparedOptions, SamplingOptions
from .configuration_qwen_discrete_diffusion import QwenDiscreteDiffusionConfig


@dataclass
class DecodingRound:
    """One round of decoding; integers (R * B, H, action_dim): bins, `num_bins` where masked.

    Args:
        tokens: before the round.
        proposed: what it drew for each masked token; known ones as they were.
        remaining: after the round, some masked again.
    """

    tokens: torch.Tensor
    proposed: torch.Tensor
    remaining: torch.Tensor


class DiscreteDiffusionActionHead(DenoisingActionHead):
    """Predicts the bins of masked action tokens, as StarVLA's `LayerwiseDiscreteDiffusionActionHead`."""

    def __init__(self, config: QwenDiscreteDiffusionConfig):
        width = config.vlm_hidden_size
        super().__init__(
            config,
            hidden_size=width,
            num_layers=config.vlm_num_layers,
            key_size=width,
            output_dim=config.num_bins,
            mlp_hidden_size=width,
            use_output_head=True,
            sinusoidal_positions=config.sinusoidal_positions,
        )
        self.register_buffer("bin_centers", self.uniform_centers())

    def token_modules(self, hidden_size: int, mlp_hidden_size: int) -> dict[str, nn.Module]:
        return {"token_embedding": nn.Embedding(self.config.num_bins + 1, hidden_size)}

    def uniform_centers(self) -> torch.Tensor:
        """The bins' centers in a new policy, float32 (num_bins,). Checkpoints hold them."""
        low, high, number = self.config.action_low, self.config.action_high, self.config.num_bins
        return (torch.arange(number, dtype=torch.float32) + 0.5) * ((high - low) / number) + low

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Normalised actions -> their bins, integers of the same shape."""
        low, high, number = self.config.action_low, self.config.action_high, self.config.num_bins
        fraction = (actions.float().clamp(low + 1e-6, high - 1e-6) - low) / (high - low)
        return (fraction * number).long().clamp(0, number - 1)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens -> their bins' centers, float32 of the same shape; masked ones -> the middle of the range."""
        centers = self.bin_centers.float()[tokens.clamp(max=self.config.num_bins - 1)]
        return centers.masked_fill(
            tokens == self.config.num_bins, (self.config.action_low + self.config.action_high) / 2
        )

    def logits(self, tokens: torch.Tensor, conditioning: Conditioning, *, state=None, recorder=None) -> torch.Tensor:
        """Of every token's bin, float32 (B, R, H, action_dim, num_bins), given tokens (B, R, H, action_dim), some masked."""
        temb = self.transformer.timestep_encoder(tokens.new_zeros(1, 1))  # the network is not told how many are masked
        embedded = self.token_embedding(tokens.flatten(2))
        return (
            self.denoise(embedded, conditioning, temb, state=state, recorder=recorder)
            .float()
            .unflatten(2, tokens.shape[2:])
        )

    def loss(
        self, conditioning: Conditioning, targets: ActionTargets, *, state=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy of each draw's masked tokens, and `l1_loss_weight` times the mean absolute error of all.

        `timestep` (R * B,) of the targets, 0 to 1, says how many tokens are masked, `noise` (R * B, H, action_dim) which: those
        of the lowest numbers. If None they are drawn, uniformly and in this order, so that a seed gives StarVLA's draw.
        """
        config, device, actions = self.config, targets.actions.device, targets.actions.float()[:, None]
        shape = self.drawn_shape(targets)
        time = torch.rand(shape[0], device=device) if targets.timestep is None else targets.timestep
        order = torch.rand(shape, device=device) if targets.noise is None else targets.noise
        ratio = time if config.train_mask_schedule == "linear" else 1 - torch.cos(torch.pi * 0.5 * time)
        number = (config.num_action_tokens * ratio.clamp(1e-6, 1)).round().clamp(min=1)
        masked = order.flatten(1).argsort(dim=1).argsort(dim=1) < number[:, None]
        if config.no_mask_token_prob:
            masked &= torch.rand(masked.shape, device=device) >= config.no_mask_token_prob
        masked = untile(masked.view(shape), len(actions))
        valid = torch.ones_like(masked)
        if targets.action_mask is not None:  # padding is neither learnt nor shown
            valid = targets.action_mask.bool()[:, None, :, None].expand_as(masked)
        bins = self.encode(actions).expand_as(masked)
        logits = self.logits(bins.masked_fill(masked | ~valid, config.num_bins), conditioning, state=state)
        cross_entropy = nn.functional.cross_entropy(logits.flatten(0, -2), bins.flatten(), reduction="none").view_as(
            bins
        )
        learnt = masked & valid
        share = valid.sum((2, 3), keepdim=True) / learnt.sum((2, 3), keepdim=True).clamp(min=1)
        l1 = (self.decode(logits.argmax(dim=-1)) - actions).abs()
        return targets.mean(cross_entropy * learnt * share + config.l1_loss_weight * l1)

    def prepared(self, options: SamplingOptions, batch: int, device: torch.device) -> PreparedOptions:
        """Draw what each row of noise seeds, uniform numbers (rounds, 2, R * B, H, action_dim), and bring all on the device."""
        config, noise, real_time = self.config, options.noise, options.real_time_chunking
        shape = (batch, config.action_horizon, config.action_dim)
        rows = batch if self.given_noise(options, shape) is None else len(noise)
        number = options.num_inference_steps or config.num_inference_steps
        if real_time is not None:
            if real_time.max_guidance_weight != RealTimeChunking.max_guidance_weight:
                raise ValueError(
                    f"max_guidance_weight is {real_time.max_guidance_weight}, but discrete diffusion is not guided: it keeps the "
                    "previous chunk's bins as they are. Leave it out, or pass fewer steps of previous_chunk to leave more free"
                )
            real_time = real_time.for_chunks(shape, rows // batch, device)
            number = max(1, number * (shape[1] - real_time.previous_chunk.shape[1]) // shape[1])
        if config.use_simple_max:
            number = 1
        overlap = 0 if real_time is None else real_time.previous_chunk.shape[1]
        unknown = (config.action_horizon - overlap) * config.action_dim
        if noise is not None:
            seeds = [zlib.crc32(row.float().cpu().contiguous().numpy().tobytes()) for row in noise]
            drawn = [torch.rand((number, 2, *shape[1:]), generator=torch.Generator().manual_seed(s)) for s in seeds]
            noise = torch.stack(drawn, dim=2).to(device)
        generator = options.generator if noise is None else None
        given = {
            "noise": noise,
            "generator": generator,
            "num_inference_steps": number,
            "real_time_chunking": real_time,
            "masked_after": masked_after_rounds(number, unknown, config.decode_schedule),
        }
        return PreparedOptions(**vars(options) | given)

    def sample(self, conditioning, options=None, *, state=None, decode_temperature=None, choice_temperature=None):
        """Draw action chunks, float32 (R * B, H, action_dim), normalised; temperatures are by default the config's.

        Without noise, a seed gives StarVLA's draw. With `noise` (R * B, H, action_dim), each row seeds one chunk's draw. A
        previous chunk's actions are known tokens from the start, as in StarVLA's `predict_action_realtime`.
        """
        device, batch = conditioning.states[0].device, len(conditioning.states[0])
        if not isinstance(options, PreparedOptions):
            options = self.prepared(options or SamplingOptions(), batch, device)
        config, number, real_time = self.config, options.num_inference_steps, options.real_time_chunking
        rows = batch if options.noise is None else options.noise.shape[2]
        tokens = torch.full((rows, config.action_horizon, config.action_dim), config.num_bins, device=device)
        overlap = 0 if real_time is None else real_time.previous_chunk.shape[1]
        if real_time is not None:
            tokens[:, :overlap] = self.encode(real_time.previous_chunk)
        if config.use_simple_max:
            decode_temperature = 0.0
        recorder, report = self.reporter(options, batch, number)
        hot = config.decode_temperature if decode_temperature is None else decode_temperature
        choice = config.choice_temperature if choice_temperature is None else choice_temperature
        uniform = _Draws(options)
        rounds = self.rounds(
            conditioning, tokens, options.masked_after, uniform, hot, choice, state=state, recorder=recorder
        )
        for index, decoding in enumerate(rounds):
            if report is not None:
                report(index, self.decode(decoding.tokens), self.decode(decoding.remaining))
        chunk = self.decode(decoding.remaining)
        return chunk if real_time is None else real_time.with_executed(chunk)

    def log_prob(self, trace: Trace, conditioning, temperature: float, executed: int | None, *, state=None):
        """Sum the log-probabilities of the bins that were drawn in R rounds, which are rows of one call: float32 (B,).

        All proposals count, of tokens that were masked again too. Which of them these are is chosen by the proposals'
        probabilities; the density of that choice is left out.
        """
        tokens, proposed = trace["tokens"], trace["proposed"]  # (B, R, H, action_dim)
        log_probs = (self.logits(tokens, conditioning, state=state) / temperature).log_softmax(dim=-1)
        drawn = log_probs.gather(-1, proposed[..., None])[..., 0].where(tokens == self.config.num_bins, 0.0)
        return drawn[:, :, :executed].flatten(1).sum(dim=1)

    def rounds(
        self,
        conditioning,
        tokens,
        masked_after,
        uniform,
        decode_temperature,
        choice_temperature,
        *,
        state=None,
        recorder=None,
    ) -> Iterator[DecodingRound]:
        """Decode tokens (R * B, H, action_dim) in rounds; known ones of the start stay.

        `masked_after` says how many tokens are masked after each round.

        The proposals' log-probabilities are `log_softmax(logits(tokens) / decode_temperature)` at the masked tokens.
        """
        batch, pinned = len(conditioning.states[0]), tokens != self.config.num_bins
        number = len(masked_after)
        conditioning = self.transformer.prepare(conditioning, recorder)
        for index, keep in enumerate(masked_after):
            masked = tokens == self.config.num_bins
            logits = tile(self.logits(untile(tokens, batch), conditioning, state=state, recorder=recorder))
            probabilities = (logits / max(decode_temperature, 1e-8)).softmax(dim=-1)
            drawn = uniform.tokens(index, probabilities) if decode_temperature else logits.argmax(dim=-1)
            proposed = torch.where(masked, drawn, tokens)
            confidence = probabilities.gather(-1, drawn[..., None])[..., 0].masked_fill(~masked, torch.inf).flatten(1)
            if choice_temperature:
                gumbel = -torch.log(-torch.log(uniform.places(index, confidence) + 1e-10) + 1e-10)
                temperature = max(choice_temperature * (1 - (index + 1.0) / number), 1e-8)
                confidence = -torch.log(confidence + 1e-8) / temperature + gumbel
            again = (confidence.argsort(dim=1).argsort(dim=1) < keep).view_as(tokens) & ~pinned
            remaining = proposed.masked_fill(again, self.config.num_bins)
            yield DecodingRound(tokens, proposed, remaining)
            tokens = remaining


@torch.compiler.assume_constant_result
def masked_after_rounds(number: int, unknown: int, schedule: str) -> tuple[int, ...]:
    """Return how many of `unknown` tokens are still masked after each of `number` rounds."""
    progress = torch.arange(1, number) / number  # float32, as in StarVLA: it rounds down below
    ratio = 1 - progress if schedule == "linear" else 0.5 * (1 + torch.cos(torch.pi * progress))
    return (*(min(max(int(unknown * r), 1), max(unknown - 1, 0)) for r in ratio), 0)


class _Draws:
    """Where decoding's randomness comes from: torch's generator, in StarVLA's order, or the numbers that noise seeded."""

    def __init__(self, options: PreparedOptions):
        self.generator, self.numbers = options.generator, options.noise

    def tokens(self, index: int, probabilities: torch.Tensor) -> torch.Tensor:
        """Bins drawn from probabilities (…, num_bins)."""
        if self.numbers is None:
            return torch.multinomial(probabilities.flatten(0, -2), 1, generator=self.generator).view(
                probabilities.shape[:-1]
            )
        below = probabilities.cumsum(dim=-1) <= self.numbers[index, 0][..., None]
        return below.sum(dim=-1).clamp(max=probabilities.shape[-1] - 1)

    def places(self, index: int, like: torch.Tensor) -> torch.Tensor:
        """Uniform numbers of the shape of `like` (R * B, tokens)."""
        if self.numbers is None:
            return torch.rand(like.shape, generator=self.generator, device=like.device)
        return self.numbers[index, 1].view_as(like)


class QwenDiscreteDiffusionForActionPrediction(DenoisingPolicy):
    """StarVLA's QwenDiscreteDiffusion. Block i of the head attends the state h[i + 1] of the backbone, as in QwenPI."""

    config_class = QwenDiscreteDiffusionConfig
    exploration_settings = frozenset({"temperature", "num_inference_steps", "executed_steps"})
    trace_entries = ("tokens", "proposed")

    def __init__(self, config: QwenDiscreteDiffusionConfig):
        super().__init__(config)
        self.vlm = build_backbone(config.vlm_config)
        self.action_head = DiscreteDiffusionActionHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DiscreteDiffusionActionHead):
            init.copy_(module.bin_centers, module.uniform_centers())

    def conditioning(self, input_ids, attention_mask, **inputs) -> Conditioning:
        states = self.backbone_states(input_ids, attention_mask, **inputs)[1:]
        states = [state.to(self.action_head.dtype) for state in states]
        return Conditioning.masked(states, attention_mask if self.config.mask_padding else None)

    def sample_actions(self, options, *, state=None, decode_temperature=None, choice_temperature=None, **inputs):
        temperatures = {"decode_temperature": decode_temperature, "choice_temperature": choice_temperature}
        return self.action_head.sample(self.conditioning(**inputs), options, state=state, **temperatures)

    def draw_chunk(self, exploration, generator, *, state=None, **inputs):
        config, head = self.config, self.action_head
        conditioning = head.transformer.prepare(self.conditioning(**inputs))
        shape = (len(conditioning.states[0]), config.action_horizon, config.action_dim)
        noise = draw_normal(shape, generator, self.device)
        options = SamplingOptions(noise=noise, num_inference_steps=exploration.num_inference_steps)
        options = head.prepared(options, len(noise), self.device)
        tokens = torch.full(shape, config.num_bins, device=self.device)
        hot, choice = self._temperature(exploration), config.choice_temperature
        rounds = list(
            head.rounds(conditioning, tokens, options.masked_after, _Draws(options), hot, choice, state=state)
        )
        trace = {
            "tokens": torch.stack([decoding.tokens for decoding in rounds], dim=1),
            "proposed": torch.stack([decoding.proposed for decoding in rounds], dim=1),
        }
        log_prob = head.log_prob(trace, conditioning, hot, exploration.executed_steps, state=state)
        return head.decode(rounds[-1].remaining), log_prob, trace

    def log_prob_of(self, trace, exploration, *, state=None, **inputs) -> torch.Tensor:
        # One call needs no prepared keys and values, which FSDP couldn't compute outside of the blocks.
        conditioning, hot = self.conditioning(**inputs), self._temperature(exploration)
        return self.action_head.log_prob(trace, conditioning, hot, exploration.executed_steps, state=state)

    def _temperature(self, exploration: Exploration) -> float:
        temperature = exploration.temperature or self.config.decode_temperature
        if not temperature:
            raise ValueError(
                "this policy's decode_temperature is 0, so that nothing is drawn; explore with Exploration(temperature=1.0)"
            )
        return temperature


__all__ = ["QwenDiscreteDiffusionForActionPrediction"]
