"""Run a policy that `hf-vla export` wrote, by ONNX Runtime or `torch.export`; observations in, robot units out."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..utils.extras import pip_install
from .policy import Policy

DESCRIPTION, EXAMPLE = "export.json", "example.npz"
#: By name, the file of each format.
FORMATS = {"onnx": "policy.onnx", "pt2": "policy.pt2"}


class ExportedModel:
    """The network of an exported folder, with as much of a model's interface as `Policy` needs.

    Args:
        folder: that `hf-vla export` wrote.
        format: "onnx" or "pt2"; default: the first that is there.

    Raises:
        OSError: the folder holds no exported policy.
        ValueError: it was not exported in that format.
        ImportError: ONNX Runtime is not installed.
    """

    compiled_sampling = None

    def __init__(self, folder: str | Path, format: str | None = None):
        from transformers import AutoConfig

        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            raise OSError(f"{folder} holds no {DESCRIPTION}: hf-vla export writes such folders")
        self.about = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
        format = format or next(iter(self.about["files"]))
        if format not in self.about["files"]:
            raise ValueError(f"{folder} was not exported as {format!r}, but as {', '.join(self.about['files'])}")
        self.config = AutoConfig.from_pretrained(self.folder)
        self.device, self.dtype = torch.device("cpu"), getattr(torch, self.about["dtype"])
        self.sampling_options = (
            frozenset() if self.about["noise"] is None else frozenset({"noise", "num_inference_steps"})
        )
        self._run = {"onnx": self._onnx, "pt2": self._pt2}[format](self.folder / FORMATS[format])

    def eval(self) -> "ExportedModel":
        return self

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the normalised actions (B, action_horizon, action_dim) of the inputs that `export.json` names.

        Raises:
            ValueError: an input is missing, or has another shape or dtype.
        """
        for name, wanted in self.about["inputs"].items():
            if name not in inputs:
                raise ValueError(f"the input {name} is missing; needed are {', '.join(self.about['inputs'])}")
            given = inputs[name]
            if list(given.shape) != wanted["shape"] or str(given.dtype) != wanted["dtype"]:
                raise ValueError(
                    f"{name} is {given.dtype} {list(given.shape)}; it was exported for {wanted['dtype']} {wanted['shape']}"
                )
        return self._run({name: inputs[name] for name in self.about["inputs"]})

    def predict_action(
        self, input_ids, attention_mask=None, *, noise=None, generator=None, num_inference_steps=None, **inputs
    ) -> torch.Tensor:
        """As a policy's: the outputs of its processor -> normalised actions; the noise is drawn from `generator` if None."""
        inputs = {name: x for name, x in inputs.items() if x is not None}
        if num_inference_steps not in (None, self.about["num_inference_steps"]):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; this was exported with {self.about['num_inference_steps']}"
            )
        if len(input_ids) != (batch := self.about["inputs"]["input_ids"]["shape"][0]):
            raise ValueError(f"{len(input_ids)} observations; this was exported for {batch} in each call")
        if inputs["image_grid_thw"].tolist() != self.about["image_grid_thw"]:
            raise ValueError(
                f"the images are of {inputs['image_grid_thw'].tolist()} patches; this was exported for {self.about['image_grid_thw']}: "
                "as many images of the same sizes in each call"
            )
        ids, mask = self._arranged(input_ids, attention_mask)
        inputs |= {"input_ids": ids, "attention_mask": mask}
        if (wanted := self.about["inputs"].get("noise")) is not None:
            if noise is None or self.about["noise"] == "uniform":
                draw = torch.randn if self.about["noise"] == "normal" else torch.rand
                noise = draw(wanted["shape"], generator=generator)
            inputs["noise"] = noise.to(torch.float32)
        return torch.from_numpy(self.run({name: x.numpy() for name, x in inputs.items()}))

    def _arranged(self, ids: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts with padding after them, of the length that was exported."""
        mask = torch.ones_like(ids) if mask is None else mask
        length = self.about["inputs"]["input_ids"]["shape"][1]
        longest = int(mask.sum(dim=1).max())
        if longest > length or (self.about["attends_padding"] and ids.shape[1] != length):
            exactly = "prompts of exactly" if self.about["attends_padding"] else "prompts of at most"
            raise ValueError(
                f"a prompt has {longest} tokens; this was exported for {exactly} {length}: export again with --instruction, an "
                "instruction as long as those to come"
            )
        if not self.about["attends_padding"]:
            order = (torch.arange(ids.shape[1]) + mask.int().argmax(dim=1, keepdim=True)) % ids.shape[1]
            ids, mask = (F.pad(x.gather(1, order), (0, max(0, length - x.shape[1])))[:, :length] for x in (ids, mask))
        places = [row.nonzero()[:, 0].tolist() for row in ids == self.about["image_token_id"]]
        if places != self.about["image_places"]:
            raise ValueError("the images are at other places of the prompt than when this was exported")
        return ids, mask

    def _onnx(self, file: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{file} needs onnxruntime: {pip_install('export')}") from error
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]
        return lambda inputs: session.run(["actions"], {name: inputs[name] for name in names})[0]

    def _pt2(self, file: Path):
        network, names = torch.export.load(file).module(), list(self.about["inputs"])

        @torch.no_grad()
        def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return network(*(torch.from_numpy(inputs[name]) for name in names)).numpy()

        return run


def load_exported(folder: str | Path, unnorm_key: str | None = None, format: str | None = None) -> Policy:
    """Return an exported policy as a `Policy`, on the CPU.

    `infer` takes the batch size, images and lengths of instructions that it was exported for; there is no real-time chunking and no
    trace.

    Args:
        folder, format: as for `ExportedModel`.
        unnorm_key: the statistics key; optional if there is only one.

    Raises:
        ValueError: it was not exported in that format, or before exported policies had fingerprints.
    """
    from transformers import AutoProcessor

    policy = Policy(ExportedModel(folder, format), AutoProcessor.from_pretrained(folder), unnorm_key)
    if "fingerprint" not in policy.model.about:
        raise ValueError(
            f"{folder} was exported by an earlier version, without a fingerprint; export the policy again"
        )
    policy.fingerprint = policy.model.about["fingerprint"]  # that of the policy that was exported
    return policy


__all__ = ["DESCRIPTION", "EXAMPLE", "FORMATS", "ExportedModel", "load_exported"]
