"""The result of `Policy.predict`, and the recorders of its details: time per stage, denoising steps, attention on images."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Prediction:
    """One observation's action chunks, and how they were computed.

    Args:
        actions: float32 (num_samples, action_horizon, action_dim), robot units.
        action_names: one name per action dimension.
        unnorm_key: the statistics key that was used.
        prompt: the text that the model saw, special tokens included; a run of the same special token is written once, with
            its length, as in "<|image_pad|>×36".
        input_ids: the prompt's tokens, integer (L,).
        seconds: seconds per stage: "processor", "model", "unnormalize"; if an action head follows the backbone, also the two
            parts of "model", "backbone" (all encoders of the observation) and "action head" (the rest).
        chunks: with a trace of a framework that denoises, float32 (num_inference_steps + 1, num_samples, action_horizon,
            action_dim), robot units: the noise, and the chunk after each denoising step. The noise is un-normalised like the actions.
        attention: with a trace, one float32 array (blocks, num_inference_steps, rows, columns) per image of the observation:
            the weight that a block puts on each cell of the image's token grid, averaged over samples, heads and queries.
            Blocks are those of the action head that attend to the backbone. A block's weights over the whole prompt sum to 1
            (in QwenDual, together with those of DINO's patches, which the maps leave out). Of a framework that does not denoise,
            blocks are the backbone's layers, and there is one step: from the tokens that become actions.
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
    """Measures seconds per stage, in `seconds`; the accelerator is synchronised before each reading."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to a stage."""
        start = self._now()
        try:
            yield
        finally:  # a backbone whose last states are not read ends by an exception
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start


class Recorder:
    """An `on_step` callback for `predict_action` that records the chunks and the attention on images.

    Args:
        positions: one integer array (rows, columns, layers) per image: the prompt's tokens that cover each cell, as
            `VLAProcessor.image_token_positions` returns them.
    """

    def __init__(self, positions: list[np.ndarray]):
        self._positions = positions
        self._chunks: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []

    def __call__(self, step) -> None:
        if not self._chunks:
            self._chunks.append(step.noisy_actions)
        self._chunks.append(step.actions)
        per_block = [weights.mean(dim=(0, 1, 2)) for weights in step.attention if weights is not None]
        self._weights.append(torch.stack(per_block))

    def chunks(self) -> torch.Tensor:
        """Return the chunks, normalised, (steps + 1, num_samples, action_horizon, action_dim)."""
        return torch.stack(self._chunks)

    def attention(self) -> list[np.ndarray]:
        """Return one map (blocks, steps, rows, columns) per image; a token that covers several cells is split among them."""
        weights = torch.stack(self._weights, dim=1).cpu().numpy()  # (blocks, steps, keys)
        return maps_on_images(weights, self._positions)


def maps_on_images(weights: np.ndarray, positions: list[np.ndarray]) -> list[np.ndarray]:
    """Return attention weights (blocks, steps, keys) as one map (blocks, steps, rows, columns) per image.

    `positions` are as for [`Recorder`]. A token that covers several cells is split among them.
    """
    maps = []
    for of_image in positions:
        _, index, cells = np.unique(of_image, return_inverse=True, return_counts=True)
        share = cells[index.reshape(of_image.shape)]
        maps.append((weights[..., of_image] / share).sum(axis=-1).astype(np.float32))
    return maps


__all__ = ["Prediction", "Recorder", "Stopwatch", "maps_on_images"]
