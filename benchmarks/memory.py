"""GPU memory that training the full-size QwenPI_v3 (5.07 B parameters) needs, by setup: the tables of docs/scaling.md.

    python benchmarks/memory.py                               # both tables, computed from the model on the meta device
    python benchmarks/memory.py --images 2 --text-tokens 100  # samples of another size

Weights, gradients and optimizer states are exact; tests compare them with the bytes of real training steps. Temporary memory
(gathered weights, autocast's copies, DDP's buckets) and activations are estimates; their formulas are in docs/scaling.md.
"""

import argparse
from dataclasses import dataclass

import torch
from activation_memory import Activations, activations
from full_size import QWEN3_VL_4B
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_vla import QwenPIV3Config, QwenPIV3ForActionPrediction

GIB = 2**30
CARDS = (24, 48, 80, 141)
#: of a card's memory, what is left beside CUDA's own and fragmentation
USABLE = 0.92
#: elements of gathered weights that ZeRO-3 holds at most (stage3_max_live_parameters), and updates at once (sub_group_size)
ZERO3_LIVE = ZERO3_GROUP = 10**9


@dataclass(frozen=True)
class Setup:
    """Bytes per parameter, and which of them are split over the GPUs.

    Args:
        trained: "all", "head" (the backbone is frozen) or "lora" (adapters, and everything outside the backbone in full).
        weights, gradients, states: bytes of a trained parameter's weight, of its gradient, and of Adam's two moments and master
            weights.
        copies: bytes of autocast's copies of trained weights in the computing dtype.
        buckets: bytes of DDP's buckets per trained parameter, with two GPUs or more.
        split: which of weights, gradients and states are divided by the number of GPUs.
        engine: decides what is gathered: "", "fsdp2", "zero2", "zero3" or "offload" (everything split is in CPU memory).
    """

    name: str
    flags: str
    trained: str = "all"
    weights: int = 4
    gradients: int = 4
    states: int = 8
    copies: int = 0
    buckets: int = 0
    split: frozenset = frozenset()
    engine: str = ""


_FLOAT32 = {"copies": 2, "buckets": 4}  # float32 weights, computed with in bfloat16
_BFLOAT16 = {"weights": 2, "gradients": 2, "states": 4, "buckets": 2}
_DEEPSPEED = {"weights": 2, "gradients": 2, "states": 12}  # states: float32 master weights too
_ALL = frozenset(("weights", "gradients", "states"))
SETUPS = [
    Setup("everything, DDP", "`ddp.yaml` `bf16`", **_FLOAT32),
    Setup("everything in bfloat16, DDP", "`ddp.yaml` `bf16` `dtype: bfloat16`", **_BFLOAT16),
    Setup("everything, ZeRO-2", "`zero2.yaml` `bf16`", **_DEEPSPEED, split=_ALL - {"weights"}, engine="zero2"),
    Setup("everything, ZeRO-3", "`zero3.yaml` `bf16`", **_DEEPSPEED, split=_ALL, engine="zero3"),
    Setup("everything, FSDP2", "`fsdp2.yaml` `bf16`", split=_ALL, engine="fsdp2"),
    Setup("everything, ZeRO-3 offloaded", "`zero3_offload.yaml` `bf16`", **_DEEPSPEED, split=_ALL, engine="offload"),
    Setup("LoRA (r=16), DDP", "`ddp.yaml` `bf16` `use_peft`", "lora", **_FLOAT32),
    Setup("LoRA (r=16) in bfloat16, DDP", "`ddp.yaml` `bf16` `use_peft` `dtype: bfloat16`", "lora", **_BFLOAT16),
    Setup("backbone frozen, DDP", "`ddp.yaml` `bf16` `freeze_modules: [^vlm]`", "head", **_FLOAT32),
    Setup(
        "backbone frozen, in bfloat16, DDP",
        "`ddp.yaml` `bf16` `freeze_modules: [^vlm]` `dtype: bfloat16`",
        "head",
        **_BFLOAT16,
    ),
]


@dataclass
class Sizes:
    """Parameter counts: the backbone, the rest, LoRA; outside the transformer blocks, and in the largest block."""

    backbone: int
    head: int
    lora: int
    outside: int
    block: int

    @classmethod
    def of(cls, policy: nn.Module, rank: int = 16) -> "Sizes":
        total, backbone = count(policy), count(policy.vlm)
        blocks = [count(module) for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
        linear = [m for m in policy.vlm.get_decoder().modules() if isinstance(m, nn.Linear)]
        lora = sum(rank * (m.in_features + m.out_features) for m in linear)
        return cls(backbone, total - backbone, lora, total - sum(blocks), max(blocks))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def static_bytes(setup: Setup, sizes: Sizes, gpus: int = 1) -> dict[str, float]:
    """Return the bytes of weights, gradients and optimizer states on each GPU; offloaded ones are not on it."""
    trained = {"all": sizes.backbone + sizes.head, "head": sizes.head, "lora": sizes.head + sizes.lora}[setup.trained]
    frozen = {"all": 0, "head": sizes.backbone, "lora": sizes.backbone + sizes.head}[setup.trained]
    parts = {name: trained * getattr(setup, name) for name in ("weights", "gradients", "states")}
    parts["weights"] += frozen * setup.weights
    if setup.trained == "lora":  # PEFT keeps adapters in float32, and a copy of what is trained in full
        parts["weights"] += sizes.lora * (4 - setup.weights)
        parts["gradients"] += sizes.lora * (4 - setup.gradients)
        parts["states"] += sizes.lora * (8 - setup.states)
    shares = 0 if setup.engine == "offload" else 1 / gpus
    return {name: value * (shares if name in setup.split else 1) for name, value in parts.items()}


def working_bytes(setup: Setup, sizes: Sizes, gpus: int = 1) -> float:
    """Estimate the temporary memory of a step: copies, buckets, gathered weights, gradients being reduced."""
    total = sizes.backbone + sizes.head
    trained = {"all": total, "head": sizes.head, "lora": sizes.head + sizes.lora}[setup.trained]
    flight = trained * setup.copies + (trained * setup.buckets if gpus > 1 else 0)
    if setup.engine == "fsdp2":  # all outside of blocks, two blocks; a group's gradient in both dtypes
        flight += 2 * (sizes.outside + 2 * sizes.block) + 6 * max(sizes.outside, sizes.block)
    elif setup.engine == "zero2":  # this GPU's gradients in float32 as the optimizer reads them; buckets of 5e7
        flight += 4 * total / gpus + 4 * 5e7 * 2
    elif setup.engine in ("zero3", "offload"):
        flight += 2 * min(total, ZERO3_LIVE)
        flight += 4 * min(total / gpus, ZERO3_GROUP) if setup.engine == "zero3" else 0
    return flight


def full_size(dtype: torch.dtype = torch.float32) -> QwenPIV3ForActionPrediction:
    """Return QwenPI_v3 on Qwen3-VL-4B-Instruct on the meta device, which takes no memory."""
    with torch.device("meta"):
        return QwenPIV3ForActionPrediction._from_config(QwenPIV3Config(vlm_config=QWEN3_VL_4B), dtype=dtype).train()


def needs(setup: Setup, sizes: Sizes, gpus: int) -> tuple[float, float]:
    """Return the bytes on each GPU, permanent and temporary, without activations."""
    return sum(static_bytes(setup, sizes, gpus).values()), working_bytes(setup, sizes, gpus)


def memory_table(sizes: Sizes) -> str:
    rows = ["| trained | set | 1 GPU | 2 GPUs | 8 GPUs |", "|---|---|---|---|---|"]
    for setup in SETUPS:
        cells = (needs(setup, sizes, gpus) for gpus in (1, 2, 8))
        columns = " | ".join(f"{stays / GIB:.1f} + {flight / GIB:.1f}" for stays, flight in cells)
        rows.append(f"| {setup.name} | {setup.flags} | {columns} |")
    return "\n".join(rows)


def batch_table(sizes: Sizes, kept: dict[tuple[bool, bool], Activations]) -> str:
    """Return the table of batch sizes; `kept` holds activations by (autocast, backbone trained)."""
    cards = " | ".join(f"{card} GB" for card in CARDS)
    rows = [f"| trained | 1 GPU of {cards} | 8 GPUs of {cards} |", "|" + "---|" * (1 + 2 * len(CARDS))]
    for setup in SETUPS:
        own = kept[setup.weights == 4 and setup.engine != "fsdp2", setup.trained != "head"]
        cells = [_batch(setup, sizes, gpus, card, own) for gpus in (1, 8) for card in CARDS]
        rows.append(f"| {setup.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _batch(setup: Setup, sizes: Sizes, gpus: int, card: int, own: Activations) -> str:
    room = USABLE * card * GIB - sum(needs(setup, sizes, gpus))
    number = int(room // own.checkpointed)
    return "–" if number < 1 else "> 256" if number > 256 else str(number)


def tables(images: int = 1, text_tokens: int = 60) -> str:
    """Return both tables, and what a sample keeps, in Markdown."""
    policies = {autocast: full_size(torch.float32 if autocast else torch.bfloat16) for autocast in (True, False)}
    kept = {
        (autocast, backbone): activations(policies[autocast], images, text_tokens, autocast, backbone)
        for autocast in (True, False)
        for backbone in (True, False)
    }
    sizes = Sizes.of(policies[True])
    rows = ["| a sample keeps | all | with checkpointing |", "|---|---|---|"]
    for (autocast, backbone), own in kept.items():
        what = ("everything trained" if backbone else "backbone frozen", "autocast" if autocast else "all in bfloat16")
        rows.append(f"| {', '.join(what)} | {own.whole / GIB:.2f} | {own.checkpointed / GIB:.3f} |")
    return "\n\n".join((memory_table(sizes), "\n".join(rows), batch_table(sizes, kept)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1, help="images of a sample, 224 x 224 pixels each")
    parser.add_argument("--text-tokens", type=int, default=60, help="tokens of a sample's prompt beside images")
    a = parser.parse_args()
    print(tables(a.images, a.text_tokens))


if __name__ == "__main__":
    main()
