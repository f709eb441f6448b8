"""A policy as simulators, servers and demos use it: model and processor together, observations in, robot units out."""

import copy
import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import torch


class Policy:
    """A model and its processor.

    Args:
        model: a policy model, for example from `AutoModel.from_pretrained`.
        processor: its processor.
        unnorm_key: whose statistics; optional where the processor knows only one.

    ```python
    >>> policy = Policy.from_pretrained("outputs/quickstart/policy")  # doctest: +SKIP
    >>> actions = policy.infer({"image": [front], "lang": "open the drawer", "state": state})  # doctest: +SKIP
    >>> actions.shape  # (action_horizon, action_dim)  # doctest: +SKIP
    (8, 4)
    ```
    """

    def __init__(self, model, processor, unnorm_key: str | None = None):
        self.model, self.processor, self.unnorm_key = model.eval(), processor, unnorm_key
        self._generator: torch.Generator | None = None
        if processor.statistics:
            processor.resolve_key(unnorm_key)  # a wrong key is an error now, not on the robot

    @classmethod
    def from_pretrained(cls, name_or_path: str, unnorm_key: str | None = None, device=None, dtype="auto", **kwargs):
        """Load model and processor from a folder or Hub repository.

        Args:
            device: where the model goes; by default the GPU where there is one.
            dtype: "auto" keeps the checkpoint's.
            kwargs: for both `from_pretrained` (`base_vlm=`, `revision=`, …).

        Raises:
            OSError: no such folder or repository, or files of it are missing.
        """
        from transformers import AutoModel, AutoProcessor

        from .checkpoints.sources import check_source

        check_source(name_or_path, **kwargs)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        model = AutoModel.from_pretrained(name_or_path, dtype=dtype, **kwargs).to(device)
        return cls(model, AutoProcessor.from_pretrained(name_or_path, **kwargs), unnorm_key)

    @property
    def action_horizon(self) -> int:
        return self.model.config.action_horizon

    def reset(self, seed: int | None = None) -> None:
        """Start an episode. With a seed, its draws are reproducible; without, they follow torch's global generator."""
        self._generator = None
        if seed is not None:
            self._generator = torch.Generator(device=self.model.device).manual_seed(seed)

    def infer(
        self,
        observation: Mapping | Sequence[Mapping],
        previous_chunk: np.ndarray | None = None,
        inference_delay: int = 0,
    ) -> np.ndarray:
        """Action chunks for one observation or a batch of them.

        Args:
            observation: {"image": [PIL images or HWC arrays], "lang": instruction, "state": (1, S) or (S,), optional}, in
                robot units, or a list of these.
            previous_chunk: for real-time chunking with the flow-matching frameworks, what was not yet executed of the previous
                chunk when the observation was taken: (H', action_dim), robot units; (B, H', action_dim) for a list.
            inference_delay: how many steps of it are executed before this call's chunk is ready. They are returned as
                they are; execute the new chunk from step `inference_delay` on.

        Returns:
            float32 array (action_horizon, action_dim) in robot units; (B, action_horizon, action_dim) for a list.

        Raises:
            ValueError: an observation lacks an image or the instruction, or something has another shape, type or value.
        """
        single = isinstance(observation, Mapping)
        batch = _checked([observation] if single else observation)
        inputs = self.processor(
            images=[_views(o["image"]) for o in batch],
            text=[o["lang"] for o in batch],
            state=_states(batch),
            unnorm_key=self.unnorm_key,
        ).to(self.model.device)
        real_time = {}
        if previous_chunk is not None or inference_delay:
            real_time = self._real_time_chunking(previous_chunk, inference_delay, single)
        normalized = self.model.predict_action(**inputs, generator=self._generator, **real_time)
        actions = self.processor.unnormalize_actions(normalized, self.unnorm_key)
        return actions[0] if single else actions

    def _real_time_chunking(self, previous_chunk, inference_delay: int, single: bool) -> dict:
        """The arguments of `predict_action` for it, of a previous chunk in robot units."""
        if "previous_chunk" not in inspect.signature(self.model.predict_action).parameters:
            raise ValueError(
                f"{type(self.model).__name__} does not denoise its actions and has no real-time chunking; leave out "
                "previous_chunk and inference_delay, or use a flow-matching framework"
            )
        if previous_chunk is not None:
            previous_chunk = self._normalize_executed(np.asarray(previous_chunk, dtype=np.float32))
            previous_chunk = torch.from_numpy(previous_chunk[None] if single else previous_chunk)
        return {"previous_chunk": previous_chunk, "inference_delay": inference_delay}

    def _normalize_executed(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `unnormalize_actions`: robot units (…, action_dim) -> normalised.

        `Normalizer.normalize` clips in mode q99, for training; predictions beyond the clip are executed all the same.
        Un-normalising is affine in every dimension (a binary one is 0 or 1 both ways): two points tell its inverse.
        """
        normalizer = self.processor.normalizer(self.processor.resolve_key(self.unnorm_key), "action")
        as_in_training = normalizer.normalize(actions)
        zero, one = (normalizer.unnormalize(np.full(normalizer.dim, x)) for x in (0, 1))
        constant = zero == one  # in robot units, whatever was predicted
        return np.where(constant, as_in_training, (actions - zero) / np.where(constant, 1, one - zero))

    def untrained(self, seed: int = 0) -> "Policy":
        """The same policy with new random weights: a baseline."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(copy.deepcopy(self.model.config))
        return Policy(model.to(self.model.device, self.model.dtype), self.processor, self.unnorm_key)


def _checked(observations) -> list[Mapping]:
    """The observations as a list, each with images and an instruction."""
    batch = list(observations) if isinstance(observations, Sequence) and not isinstance(observations, str) else []
    if not batch or not all(isinstance(o, Mapping) for o in batch):
        raise ValueError(
            f"got {observations!r:.80} for observations; give one {{'image': [...], 'lang': '...', 'state': ...}}, or a list "
            "of at least one"
        )
    for index, o in enumerate(batch):
        if absent := [name for name in ("image", "lang") if o.get(name) is None]:
            raise ValueError(
                f"observation {index} lacks {' and '.join(map(repr, absent))}; it has {', '.join(map(repr, o))}"
            )
        if not isinstance(o["lang"], str):
            raise ValueError(f"'lang' of observation {index} is {o['lang']!r:.80}; give the instruction, a string")
    return batch


def _views(image) -> list:
    """One image, a list of them or an array (V, height, width, 3) as a list of camera images; the processor checks them."""
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    return list(image) if several else [image]


def _states(batch: list[Mapping]) -> np.ndarray | None:
    """The observations' states, (S,) or (1, S) each, as (B, 1, S), or None where they have none."""
    with_state = [o.get("state") is not None for o in batch]
    if not any(with_state):
        return None
    if not all(with_state):
        raise ValueError("some observations of the batch have a state and some have none")
    states = [o["state"].detach().float().cpu() if isinstance(o["state"], torch.Tensor) else o["state"] for o in batch]
    try:
        states = [np.asarray(state, dtype=np.float32) for state in states]
    except (TypeError, ValueError) as error:
        raise ValueError(f"a state is no array of numbers: {error}") from None
    for index, state in enumerate(states):
        if state.ndim not in (1, 2) or (state.ndim == 2 and len(state) != 1):
            raise ValueError(
                f"the state of observation {index} has shape {state.shape}; give (state_dim,) or (1, state_dim)"
            )
    if len(sizes := {state.size for state in states}) > 1:
        raise ValueError(f"the states of the batch have different dimensions: {sorted(sizes)}")
    return np.stack([state.reshape(1, -1) for state in states])


__all__ = ["Policy"]
