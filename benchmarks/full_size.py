"""Latency, training throughput and memory of the full-size QwenPI_v3 (Qwen3-VL-4B and a 0.5 B head, random weights), on a GPU.

    python benchmarks/full_size.py                                                      # latency, throughput, memory
    python -m torch.distributed.run --standalone --nproc_per_node gpu benchmarks/full_size.py --fsdp # a step under FSDP2
    python benchmarks/full_size.py --tiny                                               # the same code on a small model, anywhere

Prints one line per measurement. Times are medians; the device is synchronised before and after each call.
"""

import argparse
import os
import statistics
import time

import torch
from torch.distributed.fsdp import fully_shard

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction

QWEN3_VL_4B = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000,
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
        },
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
IMAGE_TOKEN, VISION_START, VISION_END = 151655, 151652, 151653


def shrink(config: dict) -> dict:
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    rope = {**config["text_config"]["rope_parameters"], "mrope_section": [4, 2, 2]}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    return {
        **config,
        "text_config": {**config["text_config"], **text, "intermediate_size": 128, "rope_parameters": rope},
        "vision_config": {**config["vision_config"], **vision, "deepstack_visual_indexes": [0]},
    }


def batch_of(size: int, device, dtype, text_tokens: int = 60) -> dict[str, torch.Tensor]:
    """Make a batch of samples of one 224x224 image (49 tokens) and a prompt, with the sizes that the processor gives."""
    image = [VISION_START, *[IMAGE_TOKEN] * 49, VISION_END]
    row = torch.tensor([*image, *range(1000, 1000 + text_tokens)], device=device)
    return {
        "input_ids": row.expand(size, -1).contiguous(),
        "attention_mask": torch.ones(size, len(row), dtype=torch.long, device=device),
        "pixel_values": torch.randn(size * 196, 1536, device=device, dtype=dtype),
        "image_grid_thw": torch.tensor([[1, 14, 14]], device=device).expand(size, -1).contiguous(),
    }


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def median_seconds(function, device: torch.device, repeats: int) -> float:
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_gib(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else "not measured"


def train_step(policy, optimizer, batch):
    policy(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the code")
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 24], help="samples of a training step")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--fsdp", action="store_true", help="only one training step under FSDP2; start with torchrun")
    a = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
    dtype = torch.bfloat16
    config = QwenPIV3Config(vlm_config=shrink(QWEN3_VL_4B) if a.tiny else QWEN3_VL_4B)
    with torch.device(device):
        policy = QwenPIV3ForActionPrediction._from_config(
            config, dtype=dtype, attn_implementation=a.attn_implementation
        )
    policy.to(device)
    print(f"{policy.num_parameters():,} parameters, {dtype}, {a.attn_implementation}, on {device}", flush=True)

    if not a.fsdp:
        policy.eval()
        one = batch_of(1, device, dtype)
        for steps in (4, 10):
            seconds = median_seconds(
                lambda s=steps: policy.predict_action(**one, num_inference_steps=s), device, a.repeats
            )
            print(f"prediction, batch 1, {steps} denoising steps: {seconds * 1e3:.1f} ms", flush=True)
        seconds = median_seconds(torch.no_grad()(lambda: policy.conditioning(**one)), device, a.repeats)
        print(
            f"  of which the backbone and projectors: {seconds * 1e3:.1f} ms, peak memory {peak_gib(device)}",
            flush=True,
        )

    policy.train()
    policy.activation_checkpointing_enable()
    if a.fsdp:
        torch.distributed.init_process_group()
        for module in policy.modules():
            if type(module).__name__ in policy._no_split_modules:
                fully_shard(module)
        fully_shard(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=device.type == "cuda")
    for size in a.batch_sizes[:1] if a.fsdp else a.batch_sizes:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        batch = batch_of(size, device, dtype)
        batch["actions"] = torch.randn(size, config.action_horizon, config.action_dim, device=device)
        seconds = median_seconds(lambda b=batch: train_step(policy, optimizer, b), device, a.repeats)
        how = "FSDP2, " if a.fsdp else ""
        print(
            f"training step, {how}batch {size}, {config.repeated_diffusion_steps} noise draws, checkpointed: "
            f"{seconds * 1e3:.0f} ms, {size / seconds:.1f} samples/s, peak memory {peak_gib(device)}",
            flush=True,
        )
    if a.fsdp:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
