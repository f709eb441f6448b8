"""How much the shared keys and values of our action head save compared with a head that works like StarVLA's, in one process.

    python benchmarks/action_head.py
    python benchmarks/action_head.py --interleave

The plain way does what StarVLA's layer-wise head does: the sequence holds the 32 future tokens beside the action tokens; each
sample's noise draws are rows of a batch of their own, for which keys and values of the backbone's states are computed again
(training); and each denoising step computes them, and the AdaLN modulations, again (prediction), with torch's own linear layers.
Ours multiplies by oneDNN on a CPU (`hf_vla/modeling/linear.py`), and is timed without that too. Same weights, same draws, same results to rounding; see `hf_vla/modeling/diffusion_transformer.py`.

Both ways run in turn, and processor times are compared, which other work on the cores changes little.
"""

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vla.modeling import flow_matching
from hf_vla.modeling.action_head import FlowMatchingActionHead
from hf_vla.modeling.diffusion_transformer import Conditioning
from hf_vla.modeling.losses import ActionTargets
from hf_vla.modeling.qwen_pi_v3.configuration_qwen_pi_v3 import QwenPIV3Config
from hf_vla.modeling.sampling import SamplingOptions


def plain_velocity(head, noisy, bucket, conditioning):
    """Return the velocity at `noisy` (N, H, action_dim) and `bucket` (N,), given states of N rows, as StarVLA computes it."""
    tokens = head.action_encoder(noisy[:, None], bucket[:, None])
    tokens = tokens + head.position_embedding.weight[: noisy.shape[1]]
    future = head.future_tokens.weight.expand(len(noisy), 1, -1, -1)
    temb = head.transformer.timestep_encoder(bucket[:, None])
    tokens = head.transformer(torch.cat([future, tokens], dim=-2), conditioning, temb)
    return head.action_decoder(tokens[:, 0, -noisy.shape[1] :])


def plain_loss(head, conditioning, actions, noise, timestep):
    copies = len(noise) // len(actions)
    repeated = Conditioning(
        [state.repeat(copies, 1, 1) for state in conditioning.states], conditioning.key_mask.repeat(copies, 1)
    )
    actions = actions.repeat(copies, 1, 1)
    noisy = flow_matching.interpolate(noise, actions, timestep[:, None, None])
    bucket = flow_matching.time_to_bucket(timestep, head.config.num_timestep_buckets)
    return ((plain_velocity(head, noisy, bucket, repeated) - (actions - noise)) ** 2).mean()


def plain_sample(head, conditioning, noise, num_steps):
    buckets = flow_matching.inference_buckets(num_steps, head.config.num_timestep_buckets)

    def velocity(x, step):
        return plain_velocity(head, x, torch.full((len(x),), buckets[step]), conditioning)

    return flow_matching.integrate(velocity, noise, num_steps)


def median_seconds(functions: dict, repeats: int) -> dict[str, float]:
    """Return the median processor time of each function, called in turn."""
    times = {name: [] for name in functions}
    for attempt in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if attempt:  # the first is a warm-up
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 12, "width": 512, "tokens": 120, "horizon": 16, "batch": 2, "copies": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--interleave", action="store_true", help="odd blocks attend the action tokens instead")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = QwenPIV3Config(
        action_horizon=a.horizon,
        dropout=0.0,
        repeated_diffusion_steps=a.copies,
        interleave_self_attention=a.interleave,
    )
    head = FlowMatchingActionHead(config, hidden_size=a.width, num_layers=a.layers, key_size=a.width)
    states = [torch.randn(a.batch, a.tokens, a.width) for _ in range(a.layers)]
    conditioning = Conditioning(states, torch.ones(a.batch, a.tokens, dtype=torch.bool))
    actions = torch.randn(a.batch, a.horizon, config.action_dim)
    noise, timestep = torch.randn(a.copies * a.batch, a.horizon, config.action_dim), torch.rand(a.copies * a.batch)

    targets, first = ActionTargets(actions, noise=noise, timestep=timestep), noise[: a.batch]
    options = SamplingOptions(noise=first, num_inference_steps=a.steps)
    own_linear = torch.backends.mkldnn.flags(enabled=False)
    losses = {
        "plain": own_linear(lambda: plain_loss(head, conditioning, actions, noise, timestep)),
        "shared, torch's products": own_linear(lambda: head.loss(conditioning, targets)[0]),
        "shared": lambda: head.loss(conditioning, targets)[0],
    }
    samples = {
        "plain": own_linear(torch.no_grad()(lambda: plain_sample(head, conditioning, first, a.steps))),
        "shared, torch's products": own_linear(torch.no_grad()(lambda: head.sample(conditioning, options))),
        "shared": torch.no_grad()(lambda: head.sample(conditioning, options)),
    }
    difference = (losses["plain"]() - losses["shared"]()).abs().item()
    print(f"loss differs by {difference:.1e}, actions by {(samples['plain']() - samples['shared']()).abs().max():.1e}")
    training = {name: lambda f=f: f().backward() for name, f in losses.items()}
    for name, ways in (("forward and backward", training), (f"prediction, {a.steps} steps", samples)):
        seconds = median_seconds(ways, a.repeats)
        with torch.backends.mkldnn.flags(enabled=False):  # whose products the counter does not know
            counts = {way: flops(function) for way, function in ways.items()}
        times = ", ".join(f"{way} {value * 1e3:.1f} ms" for way, value in seconds.items())
        print(f"{name}, processor time: {times}")
        for way in list(ways)[1:]:
            print(
                f"  {way}: {seconds['plain'] / seconds[way]:.2f} times as fast as plain; FLOPs "
                f"{counts['plain'] / counts[way]:.2f} to 1"
            )


if __name__ == "__main__":
    main()
