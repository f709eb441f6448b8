"""What a chunk costs as one size changes at a time: horizon, views, text, denoising steps, batch, layers; and a training step with R.

    python benchmarks/scaling.py                                      # both tables: counted at full size, measured on a small policy
    python benchmarks/scaling.py --counts-only --bandwidth 3.35 --tflops 989      # an H100's limits
    python benchmarks/scaling.py --plot docs/images/scaling.png

Counted: QwenPI_v3 on Qwen3-VL-4B (5.07 B parameters, bfloat16, 224 x 224 views of 49 tokens, 60 text tokens, 4 steps, horizon 16), by
the static path, on the meta device, where nothing is computed. The limit is the larger of two times: weights over the memory's
bandwidth, FLOPs over the card's peak. Measured: the processor time of the same path on a small policy, one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from counting import Counts, count, plan_on_host, static_prediction
from full_size import IMAGE_TOKEN, QWEN3_VL_4B, VISION_END, VISION_START

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction
from hf_vla.modeling.losses import ActionTargets


@dataclass(frozen=True)
class Case:
    """The sizes of a call."""

    horizon: int = 16
    views: int = 1
    text: int = 60
    steps: int = 4
    batch: int = 1
    layers: int | None = None  # of the language model and the head; None: the configuration's


SWEEPS = {
    "steps": (1, 2, 4, 8, 16),
    "horizon": (8, 16, 32, 64),
    "views": (1, 2, 3, 4),
    "text": (20, 60, 180),
    "batch": (1, 2, 4, 8),
}
COPIES = (1, 4, 8, 16)  # noise draws of a sample in training


def small() -> dict:
    """Return the configuration of a small backbone."""
    config = deepcopy(QWEN3_VL_4B)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
    config["text_config"] |= {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 32}
    config["text_config"] |= {"num_key_value_heads": 8, "intermediate_size": 768}
    config["text_config"] |= {"rope_parameters": rope}
    vision = {"depth": 8, "hidden_size": 256, "num_heads": 8, "intermediate_size": 768, "out_hidden_size": 256}
    config["vision_config"] |= vision | {"deepstack_visual_indexes": []}
    return config


def build(vlm_config: dict, case: Case, device: str, dtype: torch.dtype, **own) -> QwenPIV3ForActionPrediction:
    vlm_config = deepcopy(vlm_config)
    if case.layers is not None:
        vlm_config["text_config"]["num_hidden_layers"] = case.layers
    config = QwenPIV3Config(
        vlm_config=vlm_config, action_horizon=case.horizon, interleave_self_attention=False, dropout=0.0, **own
    )
    with torch.device(device):
        return QwenPIV3ForActionPrediction._from_config(config, dtype=dtype).eval()


def inputs_of(case: Case) -> dict[str, torch.Tensor]:
    """Make a batch on the host, as the processor would."""
    image = [VISION_START, *[IMAGE_TOKEN] * 49, VISION_END]
    row = torch.tensor(image * case.views + list(range(1000, 1000 + case.text)))
    images = case.batch * case.views
    return {
        "input_ids": row.expand(case.batch, -1).contiguous(),
        "attention_mask": torch.ones(case.batch, len(row), dtype=torch.long),
        "pixel_values": torch.randn(images * 196, 1536),
        "image_grid_thw": torch.tensor([[1, 14, 14]]).expand(images, -1).contiguous(),
    }


def training_step(model, case: Case, copies: int) -> Callable[[], None]:
    """Return a function that runs a training step's forward and backward passes by the static path."""
    inputs = inputs_of(case)
    plan = plan_on_host(model, inputs)
    given = {
        name: x.to(model.device) for name, x in inputs.items() if name not in ("attention_mask", "image_grid_thw")
    }
    shape = (case.horizon, model.config.action_dim)
    with torch.device(model.device):
        noise, time_ = torch.randn(copies * case.batch, *shape), torch.rand(copies * case.batch)
        targets = ActionTargets(torch.randn(case.batch, *shape), noise=noise, timestep=time_)
    model.train()

    def step() -> None:
        loss, _ = model.action_loss(targets, plan=plan, attention_mask=None, **given)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def processor_seconds(function: Callable[[], None], repeats: int) -> float:
    """Return the median processor time, after a warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def sweep(vlm_config: dict, device: str, dtype: torch.dtype, layers: tuple[int, ...], measure: Callable, **own):
    """Yield (what changes, its value, what `measure` says of the call), one size after the other."""
    whole = build(vlm_config, Case(), device, dtype, **own)
    for name, values in SWEEPS.items():
        for value in values:
            case = replace(Case(), **{name: value})
            whole.config.action_horizon = case.horizon
            yield name, value, measure(whole, static_prediction(whole, inputs_of(case), case.steps))
    whole.config.action_horizon = Case().horizon
    for value in layers:
        model = build(vlm_config, Case(layers=value), device, dtype, **own)
        yield "layers", value, measure(model, static_prediction(model, inputs_of(Case())))
    for copies in COPIES:
        yield "R, training", copies, measure(whole, training_step(whole, Case(), copies))


def limit_ms(counts: Counts, bandwidth: float, tflops: float) -> float:
    """Return the larger of the times for reading the weights (TB/s) and for the FLOPs (TFLOP/s), in ms."""
    return 1e3 * max(counts.weight_bytes / (bandwidth * 1e12), counts.flops / (tflops * 1e12))


def line(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def plot(path: str, counted: dict, measured: dict) -> None:
    """Draw, for each size, the cost in multiples of the first value's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6))
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, counted, strict=False):
        axis.set_visible(True)
        kinds = {"FLOPs": "flops", "bytes of weights": "weight_bytes", "operators": "launches"}
        for label, field in kinds.items():
            values = [getattr(c, field) for c in counted[name].values()]
            axis.plot(
                list(counted[name]), [v / values[0] for v in values], marker="o", label=f"{label}, counted at 5 B"
            )
        if name in measured:
            values = list(measured[name].values())
            axis.plot(
                list(measured[name]),
                [v / values[0] for v in values],
                "k--s",
                label="processor time, measured on a small policy",
            )
        axis.set_title(name)
        axis.set_ylim(bottom=0)
    axes.flat[0].legend(fontsize=7)
    axes.flat[0].set_ylabel("cost, × the first")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="of the card's memory, TB/s; default an H100's")
    parser.add_argument("--tflops", type=float, default=989, help="of the card in bfloat16; default an H100's")
    parser.add_argument("--counts-only", action="store_true", help="measure nothing")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")
    parser.add_argument("--plot", help="PNG file to write")
    parser.add_argument("--tiny", action="store_true", help="count a small policy, to try the code")
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own = {"action_hidden_size": 256, "attention_head_dim": 32}
    counted, measured = {}, {}
    full = (small(), "meta", torch.bfloat16, (4, 8)) if a.tiny else (QWEN3_VL_4B, "meta", torch.bfloat16, (9, 18))
    print(line("", "value", "TFLOP", "GB of weights", "operators", "limit, ms") + "\n|---|---|---|---|---|---|")
    for name, value, c in sweep(*full, count, **(own if a.tiny else {})):
        counted.setdefault(name, {})[value] = c
        cells = [f"{c.flops / 1e12:.3f}", f"{c.weight_bytes / 1e9:.2f}", f"{c.launches:,}"]
        cells.append("" if "training" in name else f"{limit_ms(c, a.bandwidth, a.tflops):.2f}")
        print(line(name, value, *cells), flush=True)
    if not a.counts_only:
        print("\n" + line("", "value", "processor time, ms", "× the first") + "\n|---|---|---|---|")
        timed = sweep(small(), "cpu", torch.float32, (2, 4, 8), lambda _, f: processor_seconds(f, a.repeats), **own)
        for name, value, seconds in timed:
            measured.setdefault(name, {})[value] = seconds
            first = next(iter(measured[name].values()))
            print(line(name, value, f"{1e3 * seconds:.0f}", f"{seconds / first:.2f}"), flush=True)
    if a.plot:
        plot(a.plot, counted, measured)


if __name__ == "__main__":
    main()
