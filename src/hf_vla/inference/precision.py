"""What lower precision does to a policy: how far its actions move from float32's, beside its speed and the size of its weights."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..checkpoints.quantization import QUANTIZATIONS
from ..utils.suggestions import did_you_mean
from .policy import Policy

#: Precisions by name -> the arguments of `Policy.from_pretrained`. The first is what the others are compared with.
PRECISIONS = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    **{name: {"dtype": torch.bfloat16, "quantization": name} for name in QUANTIZATIONS},
}


@dataclass
class Measured:
    """A policy in one precision.

    Args:
        name: of `PRECISIONS`.
        weight_bytes: bytes of all weights.
        seconds: median time of the model for one observation.
        largest, typical: largest and median absolute difference of the normalised actions, whose range is about -1 to 1, from
            float32's.
    """

    name: str
    weight_bytes: int
    seconds: float
    largest: float
    typical: float


def measure_precisions(
    name_or_path: str,
    precisions: Sequence[str] = tuple(PRECISIONS),
    *,
    observations: Sequence[Mapping] | None = None,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    **options,
) -> Iterator[Measured]:
    """Load a policy in one precision after the other, and compare its actions on the same observations with the same noise.

    Args:
        name_or_path: as for `Policy.from_pretrained`.
        precisions: names of `PRECISIONS`; float32 is always measured, first.
        observations: as for `Policy.infer`; by default random images, which are unlike those of a camera.
        repeats: timed calls.
        clock: a clock in seconds.
        options: as for `Policy.from_pretrained`.

    Raises:
        ValueError: an unknown precision, or observations that the policy does not take.
        ImportError: the library that quantises is not installed.
    """
    for name in precisions:
        if name not in PRECISIONS:
            hint = did_you_mean(name, PRECISIONS, f"possible: {', '.join(PRECISIONS)}")
            raise ValueError(f"unknown precision {name!r}{hint}")
    expected = None
    for name in dict.fromkeys(("float32", *precisions)):
        policy = Policy.from_pretrained(name_or_path, **PRECISIONS[name], **options)
        observations = random_observations(policy) if observations is None else observations
        actions = np.concatenate([normalized_actions(policy, each, seed) for seed, each in enumerate(observations)])
        expected = actions if expected is None else expected
        difference = np.abs(actions - expected)
        seconds = _seconds(policy, observations[0], repeats, clock)
        yield Measured(
            name, weight_bytes(policy.model), seconds, float(difference.max()), float(np.median(difference))
        )
        del policy
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def random_observations(policy: Policy, number: int = 4) -> list[dict]:
    """Return observations of the kind that the policy was trained on, with random images: coarse colours and noise."""
    made = []
    for seed in range(number):
        rng, observation = np.random.default_rng(seed), policy.blank_observation()
        observation["image"] = [_random_image(rng, *image.shape[:2]) for image in observation["image"]]
        if "state" in observation:
            of_state = policy.processor.statistics[policy.processor.resolve_key(policy.unnorm_key)]["state"]
            low, high = (np.asarray(of_state.get(q) or of_state[m]) for q, m in (("q01", "min"), ("q99", "max")))
            observation["state"] = rng.uniform(low, high).astype(np.float32)
        made.append(observation)
    return made


def _random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.uniform(0, 255, (4, 4, 3))
    image = coarse[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]
    return (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)


def normalized_actions(policy: Policy, observation: Mapping, seed: int) -> np.ndarray:
    """Predict one chunk, normalised (1, action_horizon, action_dim), from noise that is the same on every device."""
    inputs, noise = policy.model_inputs([observation]), None
    if policy.denoises:
        shape = (1, policy.action_horizon, policy.model.config.action_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(policy.model.device)
    return policy.model.predict_action(**inputs, **policy.guiding, noise=noise).cpu().numpy()


def _seconds(policy: Policy, observation: Mapping, repeats: int, clock: Callable[[], float]) -> float:
    inputs, times = policy.model_inputs([observation]), []
    for _ in range(repeats):
        start = clock()
        policy.model.predict_action(**inputs, **policy.guiding).cpu()  # waits for the device
        times.append(clock() - start)
    return statistics.median(times)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, as they are stored: quantised ones with their scales."""
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}
    for module in model.modules():  # what bitsandbytes keeps beside the weights
        weight = getattr(module, "weight", None)
        for holder in (
            getattr(weight, "quant_state", None),
            getattr(getattr(weight, "quant_state", None), "state2", None),
        ):
            tensors |= {id(x): x for x in vars(holder).values() if isinstance(x, torch.Tensor)} if holder else {}
        for name in ("SCB", "CB"):
            if isinstance(x := getattr(weight, name, None), torch.Tensor):
                tensors[id(x)] = x
    return sum(_bytes(x) for x in tensors.values())


def _bytes(x: torch.Tensor) -> int:
    if hasattr(x, "__tensor_flatten__"):
        return sum(_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.numel() * x.element_size()


__all__ = ["PRECISIONS", "Measured", "measure_precisions", "normalized_actions", "random_observations", "weight_bytes"]
