"""StarVLA's recorded cases: materialised, loaded and read."""

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from hf_vla.registry import class_of

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden"
if not GOLDEN.is_dir():  # tests are collected from it: without it they would vanish, not fail
    raise FileNotFoundError(f"{GOLDEN} is missing: the tests need StarVLA's recorded cases there")


def base_vlm(name: str = "Qwen3-VL-4B-Instruct") -> Path:
    """The folder of a tiny backbone: configuration, tokenizer and image processor, no weights."""
    return GOLDEN / "base_vlms" / name


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


class Golden:
    """The recorded variants; each is materialised and loaded once."""

    def __init__(self, folder: Path):
        self.folder = folder
        spec = importlib.util.spec_from_file_location("materialize", GOLDEN / "materialize.py")
        self._materialize = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._materialize)

    @functools.cache  # noqa: B019 - one instance, as long as the session
    def run_folder(self, variant: str) -> Path:
        return self._materialize.materialize(GOLDEN / variant, self.folder)

    def base_vlm(self, variant: str) -> Path:
        tree = yaml.safe_load((GOLDEN / variant / "run" / "config.full.yaml").read_text())
        return base_vlm(tree["framework"]["qwenvl"]["base_vlm"].split("/")[-1])

    def meta(self, variant: str) -> dict:
        return json.loads((GOLDEN / variant / "meta.json").read_text())

    @functools.cache  # noqa: B019
    def policy(self, variant: str):
        from transformers import AutoModel

        return AutoModel.from_pretrained(self.run_folder(variant), base_vlm=str(self.base_vlm(variant))).eval()

    @functools.cache  # noqa: B019
    def processor(self, variant: str):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.run_folder(variant), base_vlm=str(self.base_vlm(variant)))

    def case(self, variant: str, case: str) -> Case:
        state_in_head = class_of(self.policy(variant).config.model_type, "processor").state_in_head
        recorded = np.load(GOLDEN / variant / f"case_{case}.npz")
        return Case(dict(recorded), self.meta(variant)["cases"][case], state_in_head)
