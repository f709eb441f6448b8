"""Memory and time of a training step with and without ways to save memory: activation checkpointing, LoRA, 8 and 4 bits.

    python benchmarks/savers.py                  # on the GPU if there is one, else in the CPU's memory (Linux)
    python benchmarks/savers.py --full-size      # QwenPI_v3 on a backbone of Qwen3-VL-4B's sizes, random weights; a GPU of 141 GB

Each row is a process of its own that loads the same policy in float32 and takes AdamW steps with the same batch. "weights" is
the memory that loading it added, "step" the most that the steps added to that. Times are medians, also relative to the first row.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from full_size import IMAGE_TOKEN, QWEN3_VL_4B, VISION_END, VISION_START, batch_of, median_seconds, train_step
from transformers import AutoModel

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction
from hf_vla.training.lora import add_adapter
from hf_vla.training_args.peft import PeftArguments

# An eighth of Qwen3-VL-4B's layers' width and a third of their number, and a vocabulary that does not outweigh them.
SMALL = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "image_token_id": 3,
    "vision_start_token_id": 1,
    "vision_end_token_id": 2,
    "text_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 2304,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000,
            "mrope_interleaved": True,
            "mrope_section": [12, 10, 10],
        },
    },
    "vision_config": {
        "depth": 6,
        "hidden_size": 384,
        "num_heads": 6,
        "intermediate_size": 1536,
        "out_hidden_size": 768,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [1, 3, 5],
    },
}
CASES = {
    "full training": {},
    "full training, checkpointed": {"checkpointing": True},
    "LoRA": {"use_peft": True},
    "LoRA, checkpointed": {"use_peft": True, "checkpointing": True},
    "LoRA on 8 bits": {"use_peft": True, "load_in_8bit": True},
    "LoRA on 8 bits, checkpointed": {"use_peft": True, "load_in_8bit": True, "checkpointing": True},
    "LoRA on 4 bits, checkpointed": {"use_peft": True, "load_in_4bit": True, "checkpointing": True},
}


class Memory:
    """Bytes in use, and the peak since `start`, of the GPU's allocator or of this process."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark becomes what is resident now
        return self._status("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._status("VmHWM")

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def small_batch(batch: dict) -> dict:
    ids = batch["input_ids"]
    small = ids % 4000 + 10
    for old, new in ((IMAGE_TOKEN, 3), (VISION_START, 1), (VISION_END, 2)):
        small[ids == old] = new
    return {**batch, "input_ids": small}


def measure(folder: str, batch_size: int, repeats: int, checkpointing: bool = False, **peft) -> dict:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    memory = Memory(device)
    before = memory.start()
    arguments = PeftArguments(**peft)
    policy_arguments = SimpleNamespace(policy=folder, base_vlm=None, dtype="float32")
    training = SimpleNamespace(pretrained_checkpoint=None, output_dir="", bf16=False)
    options = arguments.loading_options(policy_arguments, training)
    policy = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).to(device)
    for tensor in policy.parameters():  # of a file that is mapped, what is not read is not in memory yet
        tensor.data = tensor.data.clone() if type(tensor.data) is torch.Tensor else tensor.data
    config = policy.config
    if arguments.use_peft:
        policy = add_adapter(policy, policy_arguments, arguments)
    policy.train()
    if checkpointing:
        base = policy.get_base_model() if arguments.use_peft else policy
        base.activation_checkpointing_enable()
        if arguments.use_peft:
            base.enable_input_require_grads()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    loaded = memory.start()
    batch = batch_of(batch_size, device, torch.float32)
    batch = small_batch(batch) if config.vlm_config.text_config.vocab_size == 4096 else batch
    batch["actions"] = torch.randn(batch_size, config.action_horizon, config.action_dim, device=device)
    seconds = median_seconds(lambda: train_step(policy, optimizer, batch), device, repeats)
    return {
        "trained": sum(p.numel() for p in trained),
        "weights": loaded - before,
        "step": memory.peak() - loaded,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.case:
        print(json.dumps(measure(a.folder, a.batch_size, a.repeats, **CASES[a.case])))
        return
    options = {} if a.full_size else {"action_hidden_size": 384, "attention_head_dim": 48}
    config = QwenPIV3Config(vlm_config=QWEN3_VL_4B if a.full_size else SMALL, **options)
    with tempfile.TemporaryDirectory() as folder:
        policy = QwenPIV3ForActionPrediction._from_config(config, dtype=torch.float32)
        print(f"{policy.num_parameters():,} parameters, batch {a.batch_size}, {torch.get_num_threads()} threads\n")
        policy.save_pretrained(folder)
        del policy
        print(
            "| | trained parameters | weights, MB | step, MB | time | relative to the first |\n|---|---|---|---|---|---|"
        )
        first = None
        for name in a.cases:
            command = [sys.executable, __file__, "--case", name, "--folder", folder]
            command += ["--batch-size", str(a.batch_size), "--repeats", str(a.repeats)]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            row = json.loads(lines[-1])
            first = first or row["seconds"]
            print(
                f"| {name} | {row['trained']:,} | {row['weights'] / 1e6:.0f} | {row['step'] / 1e6:.0f} | "
                f"{row['seconds']:.2f} s | {row['seconds'] / first:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
