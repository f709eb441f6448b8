"""What several samples and a trace cost relative to one prediction, as ratios in one run.

    python benchmarks/prediction.py

The policy has random weights; `--width`, `--layers` and `--image` set its size. Samples share one run of the backbone and, in the
action head, one set of keys and values; for a trace, the head computes its attention weights explicitly and keeps them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hf_vla import Policy, QwenGR00TForActionPrediction
from hf_vla.processing.new_backbone import write_new_backbone


def build(width: int, layers: int) -> Policy:
    heads = width // 32
    vlm_config = {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "intermediate_size": 3 * width,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]},
        },
        "vision_config": {
            "depth": layers,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_heads": heads,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [],
        },
    }
    of_arm = {"min": [-1.0] * 7, "max": [1.0] * 7}
    with tempfile.TemporaryDirectory() as folder:
        write_new_backbone(Path(folder), vlm_config, ["open the drawer"], {})
        model, processor = QwenGR00TForActionPrediction.from_vlm(
            folder,
            random_init=True,
            action_horizon=16,
            state_dim=0,
            action_hidden_size=width,
            num_action_layers=layers,
            attention_head_dim=32,
            statistics={"arm": {"action": of_arm}},
            normalization_modes={"arm": {"action": "min_max"}},
        )
    return Policy(model, processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 256, "layers": 8, "image": 224, "samples": 8, "repeats": 9, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    policy = build(a.width, a.layers)
    pixels = np.random.default_rng(0).integers(0, 256, (a.image, a.image, 3), dtype=np.uint8)
    observation = {"image": [pixels], "lang": "open the drawer"}
    calls = {
        "one sample": lambda: policy.predict(observation, seed=0),
        f"{a.samples} samples": lambda: policy.predict(observation, seed=0, num_samples=a.samples),
        f"{a.samples} observations": lambda: policy.infer([observation] * a.samples, seed=0),
        "one sample, trace": lambda: policy.predict(observation, seed=0, trace=True),
    }
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(a.repeats):  # by turns, as other work comes and goes
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    stages = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in policy.predict(observation, seed=0).seconds.items())
    print(f"{policy.model.num_parameters():,} parameters; stages of one sample in ms: {stages}")
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.1f} ms, {median / medians['one sample']:.2f} times one sample")


if __name__ == "__main__":
    main()
