"""What computing keys and values once per observation saves, as a ratio in one run.

    python benchmarks/action_head.py

The plain way repeats the backbone's states for every noise draw (training) and projects them anew in every denoising step
(prediction), as StarVLA's head does. Same weights, same draws, same results; see `hf_vla/modeling/diffusion_transformer.py`.
"""

import argparse
import statistics
import time

import torch

from hf_vla.modeling import flow_matching
from hf_vla.modeling.action_head import FlowMatchingActionHead
from hf_vla.modeling.diffusion_transformer import Conditioning
from hf_vla.modeling.losses import ActionTargets
from hf_vla.modeling.qwen_pi_v3.configuration_qwen_pi_v3 import QwenPIV3Config
from hf_vla.modeling.sampling import SamplingOptions


def plain_loss(head, conditioning, actions, noise, timestep):
    copies = len(noise) // len(actions)
    repeated = Conditioning(
        [state.repeat(copies, 1, 1) for state in conditioning.states], conditioning.key_mask.repeat(copies, 1)
    )
    return head.loss(repeated, ActionTargets(actions.repeat(copies, 1, 1), noise=noise, timestep=timestep))[0]


def plain_sample(head, conditioning, noise, num_steps):
    buckets = flow_matching.inference_buckets(num_steps, head.config.num_timestep_buckets)

    def velocity(x, step):
        timestep = torch.full((len(x), 1), buckets[step])
        return head.velocity(x[:, None], timestep, conditioning)[:, 0]

    return flow_matching.integrate(velocity, noise, num_steps)


def seconds(function, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 12, "width": 512, "tokens": 120, "horizon": 16, "batch": 2, "copies": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = QwenPIV3Config(action_horizon=a.horizon, dropout=0.0, repeated_diffusion_steps=a.copies)
    head = FlowMatchingActionHead(config, hidden_size=a.width, num_layers=a.layers, key_size=a.width)
    states = [torch.randn(a.batch, a.tokens, a.width) for _ in range(a.layers)]
    conditioning = Conditioning(states, torch.ones(a.batch, a.tokens, dtype=torch.bool))
    actions = torch.randn(a.batch, a.horizon, config.action_dim)
    noise, timestep = torch.randn(a.copies * a.batch, a.horizon, config.action_dim), torch.rand(a.copies * a.batch)

    targets, first = ActionTargets(actions, noise=noise, timestep=timestep), noise[: a.batch]
    options = SamplingOptions(noise=first, num_inference_steps=a.steps)
    losses = {
        "plain": lambda: plain_loss(head, conditioning, actions, noise, timestep),
        "shared": lambda: head.loss(conditioning, targets)[0],
    }
    samples = {
        "plain": torch.no_grad()(lambda: plain_sample(head, conditioning, first, a.steps)),
        "shared": torch.no_grad()(lambda: head.sample(conditioning, options)),
    }
    difference = (losses["plain"]() - losses["shared"]()).abs().item()
    print(f"loss differs by {difference:.1e}, actions by {(samples['plain']() - samples['shared']()).abs().max():.1e}")
    train = {name: seconds(lambda f=f: f().backward(), a.repeats) for name, f in losses.items()}
    predict = {name: seconds(f, a.repeats) for name, f in samples.items()}
    for name, result in (("forward and backward", train), (f"prediction, {a.steps} steps", predict)):
        print(
            f"{name}: plain {result['plain'] * 1e3:.1f} ms, shared {result['shared'] * 1e3:.1f} ms, "
            f"{result['plain'] / result['shared']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
