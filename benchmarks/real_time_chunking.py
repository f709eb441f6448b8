"""What real-time chunking does to the seam between two chunks, and what it costs, in one run.

    python benchmarks/real_time_chunking.py

Seams: a small action head learns two modes (circles to the left and to the right) without being told which, once with blocks
that attend to the action tokens (as in PI, GR00T, Dual) and once without (PI_v3). It draws a chunk, of which 3 actions are executed,
and 2 more while the next chunk is computed, which is drawn from different noise. Cost: a larger head, without the backbone.
"""

import argparse
import math
import time

import torch

from hf_vla import QwenGR00TConfig
from hf_vla.modeling.action_head import FlowMatchingActionHead
from hf_vla.modeling.diffusion_transformer import Conditioning
from hf_vla.modeling.losses import ActionTargets
from hf_vla.modeling.real_time_chunking import RealTimeChunking
from hf_vla.modeling.sampling import SamplingOptions

HORIZON, EXECUTED, DELAY, PAIRS = 8, 3, 2, 512


def build(interleave: bool, horizon: int, dim: int, width: int, layers: int, tokens: int):
    """Make a head and the states of one observation."""
    config = QwenGR00TConfig(
        action_dim=dim,
        state_dim=0,
        action_horizon=horizon,
        interleave_self_attention=interleave,
        dropout=0.0,
        attention_head_dim=min(64, width // 2),
    )
    head = FlowMatchingActionHead(config, hidden_size=width, num_layers=layers, key_size=width)
    return head, torch.randn(1, tokens, width)


def condition(head, state: torch.Tensor, batch: int) -> Conditioning:
    return Conditioning([state.expand(batch, -1, -1)] * len(head.transformer.transformer_blocks))


def curves(samples: int) -> torch.Tensor:
    side = torch.tensor([[1.0], [-1.0]]).repeat(samples // 2, 1)
    phase = 2 * math.pi * torch.rand(samples, 1) + 0.5 * torch.arange(HORIZON)
    return torch.stack([0.7 * side + 0.25 * phase.cos(), 0.25 * phase.sin()], dim=-1)


def train(head, state: torch.Tensor, steps: int, batch: int = 64) -> None:
    conditioning = condition(head, state, batch)
    optimizer = torch.optim.Adam(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        loss, _ = head.loss(conditioning, ActionTargets(curves(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def seams(head, state: torch.Tensor, weight: float) -> dict[str, float]:
    conditioning = condition(head, state, PAIRS)
    first, second = (SamplingOptions(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    previous = head.sample(conditioning, first)[:, EXECUTED:]
    second.real_time_chunking = RealTimeChunking(previous, DELAY, max_guidance_weight=weight)
    new = head.sample(conditioning, second)
    side = new[..., :1].sign()
    radius = torch.cat([new[..., :1] - 0.7 * side, new[..., 1:]], dim=-1)[:, DELAY:].norm(dim=-1)
    same = new[:, DELAY:, 0].mean(1).sign() == previous[..., 0].mean(1).sign()
    return {
        "seam": (new[:, DELAY] - previous[:, DELAY]).abs().mean().item(),
        "jump": (new[:, DELAY] - previous[:, DELAY - 1]).abs().mean().item(),
        "same mode": same.float().mean().item(),
        "off the data": (radius - 0.25).abs().mean().item(),
    }


@torch.no_grad()
def seconds(head, state: torch.Tensor, repeats: int) -> list[float]:
    """Return the time of a prediction without and with guidance: the least of several, in turn, as other work slows some."""
    horizon, dim = head.config.action_horizon, head.config.action_dim
    guidance = SamplingOptions(real_time_chunking=RealTimeChunking(torch.randn(1, horizon // 2, dim), 2))
    best = [math.inf, math.inf]
    for _ in range(repeats):
        for index, options in enumerate((None, guidance)):
            start = time.perf_counter()
            head.sample(condition(head, state, 1), options)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 12, "width": 512, "tokens": 120, "horizon": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="of the head whose cost is measured")
    parser.add_argument("--train-steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs; the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print("blocks | guidance | seam | jump | same mode | off the data")
    for interleave in (True, False):
        torch.manual_seed(0)
        head, state = build(interleave, HORIZON, dim=2, width=32, layers=4, tokens=8)
        train(head, state, a.train_steps)
        for weight in (0.0, 1.0, 5.0, 10.0):
            row = seams(head, state, weight)
            print(
                f"{'self and cross' if interleave else 'cross only'} | {weight:g} | {row['seam']:.3f} | {row['jump']:.3f} | "
                f"{row['same mode']:.0%} | {row['off the data']:.3f}"
            )
    for interleave in (True, False):
        head, state = build(interleave, a.horizon, dim=7, width=a.width, layers=a.layers, tokens=a.tokens)
        plain, guided = seconds(head, state, a.repeats)
        print(
            f"cost, {'self and cross' if interleave else 'cross only'}: {plain * 1e3:.1f} ms without, {guided * 1e3:.1f} ms "
            f"with, {guided / plain:.2f} times as long"
        )


if __name__ == "__main__":
    main()
