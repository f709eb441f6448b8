"""What was recorded from StarVLA's own code, in tests/reference: rebuilt, loaded and read. See its README.md."""

import functools
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

REFERENCE = Path(__file__).resolve().parent / "reference"
FAST_TOKENIZER = REFERENCE / "fast_tokenizer"

# The backbones' tables of embeddings are tied in every variant; each is stored under one of its two names.
EMBEDDINGS = "qwen_vl_interface.model.model.language_model.embed_tokens.weight"
LM_HEAD = "qwen_vl_interface.model.lm_head.weight"
#: tensors that are looked up rather than multiplied by: the scale of their random values does not depend on their width
LOOKED_UP = (
    "embed_tokens.weight",
    "lm_head.weight",
    "pos_embed.weight",
    "position_embedding.weight",
    "future_tokens.weight",
    "action_query",
    "action_chunk_embeddings",
)

ACTION_BACKBONE = "Qwen3-VL-4B-Instruct-Action"
TEXT_TOKENS, NUM_ACTION_TOKENS = 151643, 2048  # Qwen3's vocabulary without special tokens; StarVLA's action tokens


def base_vlm(name: str = "Qwen3-VL-4B-Instruct") -> Path:
    """The folder of a tiny backbone: configuration, tokenizer and image processor, no weights."""
    return REFERENCE / "base_vlms" / name


def write_action_backbone(folder: Path) -> Path:
    """Write the backbone of QwenFast: Qwen3-VL's vocabulary at its real size, and StarVLA's action tokens after it.

    Its tokenizer is the tiny Qwen3-VL's, with words that no text contains between the few real ones and the special
    tokens, which have their real ids.
    """
    shutil.copytree(base_vlm(), folder)
    shutil.copytree(REFERENCE / "action_backbone", folder, dirs_exist_ok=True)  # files that differ
    (folder / "vocab.json").unlink()  # it repeats tokenizer.json
    tokenizer, config = (json.loads((folder / f"tokenizer{part}.json").read_text()) for part in ("", "_config"))
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    words = [f"<robot_action_{i}>" for i in range(NUM_ACTION_TOKENS)]
    moved = TEXT_TOKENS - len(vocabulary)
    vocabulary |= {f"§fill{i}": i for i in range(len(vocabulary), TEXT_TOKENS)}
    added = [{**token, "id": token["id"] + moved} for token in added]
    added += [{**added[0], "id": added[-1]["id"] + 1 + i, "content": word} for i, word in enumerate(words)]
    tokenizer["added_tokens"] = added
    config["additional_special_tokens"] += words
    config["added_tokens_decoder"] = {
        str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in added
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def meta_of(variant: str) -> dict:
    """What belongs to a variant's recordings: seeds, and per case instructions, losses and norms of gradients."""
    return json.loads((REFERENCE / variant / "meta.json").read_text())


def recorded_arrays(variant: str, case: str) -> dict[str, np.ndarray]:
    """The arrays of a case. Many are the same in several variants: one holds them, the others name it."""
    arrays = dict(np.load(REFERENCE / variant / f"case_{case}.npz"))
    for name, array in arrays.items():
        if array.dtype.kind == "U":
            file, member = array.item().split(":")
            arrays[name] = np.load(REFERENCE / file)[member]
    return arrays


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The random weight of that name. It depends on the name and the shape only, not on when it is drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, dtype=torch.float32)
    if len(shape) > 1:
        return values * (0.5 if name.endswith(LOOKED_UP) else values[0].numel() ** -0.5)
    if name.endswith("bias") or "gating" in name:
        return values * 0.1
    return values * 0.1 + 1  # gains of norms


def stored_weights(file: Path) -> dict[str, torch.Tensor]:
    """Trained weights. Rows of the embeddings that no case names are stored as float16."""
    stored = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    rows, exact, others = (stored.pop(f"{EMBEDDINGS}/{part}") for part in ("rows", "of_rows", "other_rows"))
    is_exact = torch.zeros(len(exact) + len(others), dtype=torch.bool)
    is_exact[rows.long()] = True
    stored[EMBEDDINGS] = torch.empty(len(is_exact), exact.shape[1])
    stored[EMBEDDINGS][is_exact], stored[EMBEDDINGS][~is_exact] = exact, others.float()
    return stored


def state_dict(variant: str) -> dict[str, torch.Tensor]:
    """The weights that a variant's cases were recorded with, under StarVLA's names and in their order."""
    rows = (line.split("\t") for line in (REFERENCE / variant / "keys.txt").read_text().splitlines())
    shapes = {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape, _ in rows}
    if (file := REFERENCE / variant / "weights.npz").exists():
        tensors = stored_weights(file)
        tensors[LM_HEAD] = tensors[EMBEDDINGS]
    else:
        tensors = {name: draw(name, shape) for name, shape in shapes.items()}
        tensors[EMBEDDINGS] = tensors[LM_HEAD]
    assert {name: tuple(x.shape) for name, x in tensors.items()} == shapes
    return {name: tensors[name] for name in shapes}


@dataclass
class Case:
    """One recorded case: what StarVLA was given and what it returned."""

    recorded: dict[str, np.ndarray]
    meta: dict
    state_in_head: bool

    def tensor(self, name: str) -> torch.Tensor | None:
        return torch.from_numpy(self.recorded[name]) if name in self.recorded else None

    def stacked(self, name: str) -> np.ndarray | None:
        """`name`_0, `name`_1, … of the samples, (B, …)."""
        values = [self.recorded[f"{name}_{i}"] for i in range(2) if f"{name}_{i}" in self.recorded]
        return np.stack(values) if values else None

    def images(self) -> list[list[np.ndarray]]:
        views = [[f"image_{i}_{v}" for v in range(4)] for i in range(2)]
        return [[self.recorded[name] for name in names if name in self.recorded] for names in views]

    def backbone_inputs(self, mode: str) -> dict[str, torch.Tensor]:
        prefix = f"{mode}/vlm_in_"
        return {name.removeprefix(prefix): self.tensor(name) for name in self.recorded if name.startswith(prefix)}

    def model_inputs(self, mode: str) -> dict[str, torch.Tensor]:
        """What `forward` or `predict_action` is given in place of what StarVLA was, the draw included."""
        inputs = self.backbone_inputs(mode)
        if self.state_in_head and self.stacked("state") is not None:
            inputs["state"] = torch.from_numpy(self.stacked("state"))
        if mode == "forward":
            inputs["actions"] = torch.from_numpy(self.stacked("action"))
            inputs |= {"noise": self.tensor("forward/randn_0"), "timestep": self.tensor("forward/t")}
        else:
            inputs |= {"noise": self.tensor("predict/randn_0")}
        return {name: value for name, value in inputs.items() if value is not None}


class ReferenceCases:
    """The recorded variants; each is written to a folder and loaded once."""

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cache  # noqa: B019 - one instance, as long as the session
    def run_folder(self, variant: str) -> Path:
        """The variant as a run folder that StarVLA's trainer left: two configurations, statistics, a checkpoint."""
        run = self.folder / variant
        shutil.copytree(REFERENCE / variant / "run", run)
        (run / "checkpoints").mkdir()
        torch.save(state_dict(variant), run / "checkpoints" / "steps_10_pytorch_model.pt")
        return run

    @functools.cache  # noqa: B019
    def action_backbone(self) -> Path:
        return write_action_backbone(self.folder / "base_vlms" / ACTION_BACKBONE)

    def base_vlm(self, variant: str) -> Path:
        tree = yaml.safe_load((REFERENCE / variant / "run" / "config.full.yaml").read_text())
        name = tree["framework"]["qwenvl"]["base_vlm"].split("/")[-1]
        return self.action_backbone() if name == ACTION_BACKBONE else base_vlm(name)

    def meta(self, variant: str) -> dict:
        return meta_of(variant)

    @functools.cache  # noqa: B019
    def policy(self, variant: str):
        from transformers import AutoModel

        return AutoModel.from_pretrained(self.run_folder(variant), base_vlm=str(self.base_vlm(variant))).eval()

    @functools.cache  # noqa: B019
    def processor(self, variant: str):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.run_folder(variant), base_vlm=str(self.base_vlm(variant)))

    def case(self, variant: str, case: str) -> Case:
        state_in_head = self.policy(variant).config.state_input == "head"
        return Case(recorded_arrays(variant, case), self.meta(variant)["cases"][case], state_in_head)
