"""What `Policy.predict` returns, and what it records on the way: time per stage, denoising steps, attention on the images."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Prediction:
    """One observation's action chunks, and how they came about.

    Args:
        actions: float32 (num_samples, action_horizon, action_dim), robot units.
        action_names: one name a dimension.
        unnorm_key: whose statistics were used.
        prompt: the text that the model saw, special tokens included; a run of one of these is written once, with its length,
            as in "<|image_pad|>×36".
        input_ids: its tokens, integer (L,).
        seconds: what each stage took: "processor", "model", "unnormalize"; and, of the model, where an action head follows
            the backbone, "backbone" (all encoders of the observation) and "action head" (the rest).
        chunks: with a trace, float32 (num_inference_steps + 1, num_samples, action_horizon, action_dim), robot units: the
            noise, and the chunk after each denoising step. Normalisation applies to noise as to actions.
        attention: with a trace, for each image of the observation a float32 array (blocks, num_inference_steps, rows,
            columns): the weight that the block puts on each cell of the image's token grid, mean over samples, heads and
            queries. Blocks are those of the action head that attend the backbone. The weights of a block's whole prompt sum
            to 1 (in QwenDual, with those of DINO's patches, which are not in the maps).
    """

    actions: np.ndarray
    action_names: list[str]
    unnorm_key: str
    prompt: str
    input_ids: np.ndarray
    seconds: dict[str, float]
    chunks: np.ndarray | None = None
    attention: list[np.ndarray] | None = None


class Stopwatch:
    """Seconds a stage, in `seconds`; the accelerator is done with a stage before its time is taken."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start


class Recorder:
    """An `on_step` of `predict_action` that keeps the chunks, and the attention on images.

    Args:
        positions: for each image an integer array (rows, columns, layers), which tokens of the prompt cover a cell, as
            `VLAProcessor.image_token_positions` gives them.
    """

    def __init__(self, positions: list[np.ndarray]):
        self._positions = positions
        self._chunks: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []

    def __call__(self, step) -> None:
        if not self._chunks:
            self._chunks.append(step.noisy_actions)
        self._chunks.append(step.actions)
        of_blocks = [weights.mean(dim=(0, 1, 2)) for weights in step.attention if weights is not None]
        self._weights.append(torch.stack(of_blocks))

    def chunks(self) -> torch.Tensor:
        """(steps + 1, num_samples, action_horizon, action_dim), normalised"""
        return torch.stack(self._chunks)

    def attention(self) -> list[np.ndarray]:
        """For each image (blocks, steps, rows, columns); a token that covers several cells is shared between them."""
        weights = torch.stack(self._weights, dim=1).cpu().numpy()  # (blocks, steps, keys)
        maps = []
        for positions in self._positions:
            _, index, cells = np.unique(positions, return_inverse=True, return_counts=True)
            share = cells[index.reshape(positions.shape)]
            maps.append((weights[..., positions] / share).sum(axis=-1).astype(np.float32))
        return maps


__all__ = ["Prediction", "Recorder", "Stopwatch"]
