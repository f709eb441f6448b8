"""The policies that `gpu.py` measures, made without the network, and their inputs."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from full_size import IMAGE_TOKEN, QWEN3_VL_4B, VISION_END, VISION_START, shrink
from gpu_measuring import DEVICE
from PIL import Image

from hf_vla.processing.new_backbone import write_new_backbone
from hf_vla.registry import class_of

TEXT_TOKENS, OFT_TOKEN = 60, 1500


def tiny_policy(framework: str, layers: int = 2, width: int = 64):
    """Make a small policy and its processor, with a tokenizer made here."""
    vlm = shrink(QWEN3_VL_4B)
    if width != 64:
        vlm["text_config"] |= {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
        vlm["text_config"] |= {"num_attention_heads": width // 16}
        vlm["vision_config"] |= {"out_hidden_size": width}
    head = {"attention_head_dim": 16, "num_future_tokens": 4}
    dit = {**head, "action_hidden_size": 32, "num_action_layers": 4, "output_dim": 24}
    dino = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {
        "qwen_pi_v3": {**head, "action_hidden_size": 32},
        "qwen_pi": head,
        "qwen_gr00t": dit,
        "qwen_dual": {**dit, "dino_config": {**dino, "patch_size": 14}},
        "qwen_oft": {},
        "qwen_fast": {"generation_constraint": "length"},
    }[framework]
    if framework == "qwen_fast":
        from hf_vla.modeling.qwen_fast.action_tokenizer import FastActionTokenizer

        chunks = np.random.default_rng(4).uniform(-1, 1, (64, 3, 2))
        own["fast"] = FastActionTokenizer.fit(chunks, vocab_size=512)
    of_arm = {"min": [-1.0, 2.0], "max": [3.0, 4.0]}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_new_backbone(Path(folder), vlm, ["open the drawer"], {})
        return class_of(framework, "model").from_vlm(
            folder,
            random_init=True,
            action_dim=2,
            state_dim=2,
            action_horizon=3,
            statistics={"arm": {"action": of_arm, "state": of_arm}},
            normalization_modes={"arm": {"action": "min_max", "state": "min_max"}},
            **own,
        )


def samples(number: int, views: int = 1, side: int | None = None) -> list[dict]:
    """Make dataset items of the tiny policies' robot, with images of `side` x `side` pixels, or 96 x 64."""
    rng, size = np.random.default_rng(0), (64, 96, 3) if side is None else (side, side, 3)
    return [
        {
            "image": [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(views)],
            "lang": "open the drawer",
            "state": rng.uniform(2, 3, (1, 2)).astype(np.float32),
            "action": rng.uniform(2, 3, (3, 2)).astype(np.float32),
            "dataset": "arm",
        }
        for _ in range(number)
    ]


def full_policy(a, framework: str = "qwen_pi_v3", **options):
    """Make a policy of full size (or a small one with --tiny) on the device."""
    own = {"action_token_id": OFT_TOKEN} if framework == "qwen_oft" else {}
    if a.tiny and framework != "qwen_oft":
        own |= {"action_hidden_size": 64, **({"num_action_layers": 2} if framework == "qwen_gr00t" else {})}
    config = class_of(framework, "config")(vlm_config=shrink(QWEN3_VL_4B) if a.tiny else QWEN3_VL_4B, **own)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        policy = class_of(framework, "model")._from_config(config, dtype=torch.bfloat16, **options)
    return policy.to(DEVICE).eval()


def observations(batch: int, views: int = 1, side: int = 16, config=None, actions: bool = False) -> dict:
    """Make inputs like a processor's, for `views` images of `side` x `side` patches and a prompt."""
    image = [VISION_START, *[IMAGE_TOKEN] * (side * side // 4), VISION_END]
    row = torch.tensor([*image * views, *range(1000, 1000 + TEXT_TOKENS)], device=DEVICE)
    model_type = getattr(config, "model_type", None)
    if model_type == "qwen_oft":
        row = torch.cat([row, torch.full((config.action_horizon,), OFT_TOKEN, device=DEVICE)])
    ids = row.expand(batch, -1).contiguous()
    grid = torch.tensor([[1, side, side]], device=DEVICE).expand(batch * views, -1).contiguous()
    pixels = torch.randn(batch * views * side * side, 1536, device=DEVICE, dtype=torch.bfloat16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    inputs |= {"image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    if model_type == "qwen_gr00t":
        inputs["state"] = torch.randn(batch, 1, config.state_dim, device=DEVICE)
    if actions:
        inputs["actions"] = torch.randn(batch, config.action_horizon, config.action_dim, device=DEVICE)
    return inputs
