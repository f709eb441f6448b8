"""A policy as simulators, servers and demos use it: model and processor together, observations in, robot units out."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch

from ..modeling.real_time_chunking import RealTimeChunking
from ..modeling.stages import timed_by
from .observations import checked, states, views
from .prediction import Prediction, Recorder, Stopwatch

#: argument of `infer` or `predict` -> the option of the model's sampler that it needs
_NEEDED_OPTION = {
    "num_samples": "noise",
    "num_inference_steps": "num_inference_steps",
    "trace": "on_step",
    "previous_chunk": "real_time_chunking",
    "inference_delay": "real_time_chunking",
}


class Policy:
    """A model and its processor.

    Args:
        model: a policy model, for example from `AutoModel.from_pretrained`.
        processor: its processor.
        unnorm_key: whose statistics; optional if the processor knows only one.

    ```python
    >>> policy = Policy.from_pretrained("outputs/quickstart/policy")  # doctest: +SKIP
    >>> actions = policy.infer({"image": [front], "lang": "open the drawer", "state": state})  # doctest: +SKIP
    >>> actions.shape  # (action_horizon, action_dim)  # doctest: +SKIP
    (8, 4)
    ```
    """

    def __init__(self, model, processor, unnorm_key: str | None = None):
        self.model, self.processor, self.unnorm_key = model.eval(), processor, unnorm_key
        #: what each stage of the last `infer` or `predict` took: "processor", "model", "unnormalize"
        self.seconds: dict[str, float] = {}
        self._generator: torch.Generator | None = None
        if processor.statistics:
            processor.resolve_key(unnorm_key)  # a wrong key is an error now, not on the robot

    @classmethod
    def from_pretrained(cls, name_or_path: str, unnorm_key: str | None = None, device=None, dtype="auto", **kwargs):
        """Load model and processor from a folder or Hub repository.

        Args:
            device: where the model goes; by default the GPU, if there is one.
            dtype: "auto" keeps the checkpoint's.
            kwargs: for both `from_pretrained` (`base_vlm=`, `revision=`, …); `base_model`, where an adapter's base is if
                not where it was, and `quantization_config`, of the backbone, for the model's; `robot_type` and
                `unnormalization` for the processor's.

        Raises:
            OSError: no such folder or repository, or files of it are missing.
        """
        from transformers import AutoModel, AutoProcessor

        from ..checkpoints.opening import open_with

        checkpoint, kwargs = open_with(name_or_path, kwargs)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        of_model = {name: kwargs.pop(name) for name in ("base_model", "quantization_config") if name in kwargs}
        of_processor = {name: kwargs.pop(name) for name in ("robot_type", "unnormalization") if name in kwargs}
        if of_model.get("quantization_config") is not None:
            of_model["device_map"] = device  # quantised weights are made where they stay
        model = AutoModel.from_pretrained(checkpoint, dtype=dtype, **of_model, **kwargs)
        if "device_map" not in of_model:
            model = model.to(device)
        return cls(model, AutoProcessor.from_pretrained(checkpoint, **of_processor, **kwargs), unnorm_key)

    @property
    def action_horizon(self) -> int:
        return self.model.config.action_horizon

    @property
    def action_names(self) -> list[str]:
        """One name per dimension of the actions; "action 0", … if the processor knows none."""
        names = self.processor.action_names.get(self.processor.resolve_key(self.unnorm_key))
        return list(names or (f"action {d}" for d in range(self.model.config.action_dim)))

    @property
    def denoises(self) -> bool:
        """Whether actions are drawn, by flow matching: with noise, denoising steps and real-time chunking."""
        return "noise" in self.model.sampling_options

    def reset(self, seed: int | None = None) -> None:
        """Start an episode. With a seed, its draws are reproducible; without, they follow torch's global generator."""
        self._generator = None if seed is None else self._seeded(seed)

    def _seeded(self, seed: int) -> torch.Generator:
        if not isinstance(seed, Integral) or isinstance(seed, bool):
            raise ValueError(f"seed is {seed!r}; give a whole number")
        return torch.Generator(device=self.model.device).manual_seed(int(seed))

    def infer(
        self,
        observation: Mapping | Sequence[Mapping],
        previous_chunk: np.ndarray | None = None,
        inference_delay: int = 0,
        *,
        num_inference_steps: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Action chunks for one observation or a batch of them.

        Args:
            observation: {"image": [PIL images or HWC arrays], "lang": instruction, "state": (1, S) or (S,), optional}, in
                robot units, or a list of these.
            previous_chunk: for real-time chunking with the flow-matching frameworks, what was not yet executed of the previous
                chunk when the observation was taken: (H', action_dim), robot units; (B, H', action_dim) for a list.
            inference_delay: how many steps of it are executed before this call's chunk is ready. They are returned as
                they are; execute the new chunk from step `inference_delay` on.
            num_inference_steps: denoising steps, by default the policy's.
            seed: of this call's noise, in place of the episode's: an observation's actions are then those that it has alone
                after `reset(seed)`, whatever is predicted beside it.

        Returns:
            float32 array (action_horizon, action_dim) in robot units; (B, action_horizon, action_dim) for a list. Absolute also
            where the policy was trained on actions relative to the state ([`hf_vla.robots.action_modes`]).

        Raises:
            ValueError: an observation lacks an image or the instruction, or something has another shape, type or value.
        """
        single = isinstance(observation, Mapping)
        batch = checked([observation] if single else observation)
        _check_counts(num_inference_steps=num_inference_steps)
        self._check_can_sample(num_inference_steps=num_inference_steps)
        generator = self._generator if seed is None else self._seeded(seed)
        drawn = {"generator": generator, "num_inference_steps": num_inference_steps}
        if seed is not None and self.denoises:
            drawn["noise"] = self._noise(1, generator).repeat(len(batch), 1, 1)
        elif generator is not None and self.denoises:  # noise, as in `predict`, which then draws the same
            shape = (len(batch), self.action_horizon, self.model.config.action_dim)
            drawn["noise"] = torch.randn(shape, generator=generator, device=self.model.device, dtype=torch.float32)
        watch = Stopwatch(self.model.device)
        inputs = self._inputs(batch, watch)
        if previous_chunk is not None or inference_delay:
            drawn["real_time_chunking"] = self._real_time_chunking(
                previous_chunk, inference_delay, states(batch), single
            )
        with watch.stage("model"):
            normalized = self.model.predict_action(**inputs, **drawn)
        with watch.stage("unnormalize"):
            actions = self.processor.unnormalize_actions(normalized, self.unnorm_key, states(batch))
        self.seconds = watch.seconds
        return actions[0] if single else actions

    def predict(
        self,
        observation: Mapping,
        *,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        seed: int | None = None,
        trace: bool = False,
    ) -> Prediction:
        """Action chunks for one observation, and how they came about.

        Args:
            observation: as in `infer`; one.
            num_samples: chunks that are drawn for it. The backbone runs once, whatever their number; the action head runs on
                all of them side by side.
            num_inference_steps: denoising steps, by default the policy's.
            seed: of the noise. The first sample is then what `infer` returns after `reset(seed)`, and the episode's own draws
                are left alone; without a seed, the noise is the episode's next.
            trace: keep the denoising steps, and where in the images the action head attends. The head's attention is written
                out for it, which may change the actions in rounding.

        Raises:
            ValueError: as in `infer`; or a framework without denoising is asked for samples, steps or a trace.
        """
        (observation,) = checked([observation])
        _check_counts(num_samples=num_samples, num_inference_steps=num_inference_steps)
        several = num_samples if num_samples > 1 else None
        self._check_can_sample(num_samples=several, num_inference_steps=num_inference_steps, trace=trace)
        generator = self._generator if seed is None else self._seeded(seed)
        key = self.processor.resolve_key(self.unnorm_key)
        watch = Stopwatch(self.model.device)
        inputs = self._inputs([observation], watch)
        input_ids = inputs["input_ids"][0].cpu()
        drawn = {"generator": generator, "num_inference_steps": num_inference_steps}
        if self.denoises:
            drawn["noise"] = self._noise(num_samples, generator)
        recorder = None
        if trace:
            (positions,) = self.processor.image_token_positions([views(observation["image"])], inputs["input_ids"])
            recorder = Recorder(positions)
            drawn |= {"on_step": recorder, "output_attentions": True}
        with watch.stage("model"), timed_by(watch.stage):
            normalized = self.model.predict_action(**inputs, **drawn)
        if "backbone" in watch.seconds:
            watch.seconds["action head"] = watch.seconds["model"] - watch.seconds["backbone"]
        with watch.stage("unnormalize"):
            actions = self.processor.unnormalize_actions(normalized, key, states([observation]))
        self.seconds = watch.seconds
        chunks = None
        if recorder is not None:
            state = states([observation])
            chunks = np.stack([self.processor.unnormalize_actions(chunk, key, state) for chunk in recorder.chunks()])
        return Prediction(
            actions=actions,
            action_names=self.action_names,
            unnorm_key=key,
            prompt=self.processor.readable(input_ids),
            input_ids=input_ids.numpy(),
            seconds=dict(watch.seconds),
            chunks=chunks,
            attention=None if recorder is None else recorder.attention(),
        )

    def _inputs(self, batch: list[Mapping], watch: Stopwatch):
        """The model's inputs, on its device."""
        if self.processor.statistics:
            mode = self.processor.action_mode(self.processor.resolve_key(self.unnorm_key))
            if mode.needs_state and states(batch) is None:
                raise ValueError(
                    f"this policy's actions are {mode.name}, differences to the robot's state: the observation needs 'state'"
                )
        with watch.stage("processor"):
            return self.processor(
                images=[views(o["image"]) for o in batch],
                text=[o["lang"] for o in batch],
                state=states(batch),
                unnorm_key=self.unnorm_key,
            ).to(self.model.device)

    def _noise(self, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        """(num_samples, action_horizon, action_dim)"""
        shape = (1, self.action_horizon, self.model.config.action_dim)
        # One draw per sample, as a draw of several numbers at once depends on how many they are.
        return torch.cat(
            [
                torch.randn(shape, generator=generator, device=self.model.device, dtype=torch.float32)
                for _ in range(num_samples)
            ]
        )

    def _check_can_sample(self, **given) -> None:
        """Raise a ValueError if a framework is asked for what it does not have."""
        known = self.model.sampling_options
        if asked := [name for name, value in given.items() if value and _NEEDED_OPTION[name] not in known]:
            how = "does not denoise its actions as flow matching does" if known else "does not denoise its actions"
            raise ValueError(
                f"{type(self.model).__name__} {how}; leave out {', '.join(asked)}, or use a framework that does: QwenPI, "
                "QwenPI_v3, QwenGR00T, QwenDual or QwenDiscreteDiffusion"
            )

    def _real_time_chunking(self, previous_chunk, inference_delay: int, state, single: bool) -> RealTimeChunking:
        """The model's argument, made of a previous chunk in robot units."""
        self._check_can_sample(previous_chunk=previous_chunk is not None, inference_delay=inference_delay)
        if previous_chunk is not None:
            previous_chunk = np.asarray(previous_chunk, dtype=np.float32)
            previous_chunk = previous_chunk[None] if single else previous_chunk
            previous_chunk = self.processor.relative_actions(previous_chunk, state, self.unnorm_key)
            previous_chunk = torch.from_numpy(self._normalize_executed(previous_chunk))
        return RealTimeChunking(previous_chunk, inference_delay)

    def _normalize_executed(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of un-normalising: robot units (…, action_dim), relative where the statistics are -> normalised.

        `Normalizer.normalize` clips in mode q99, for training; predictions beyond the clip are executed all the same.
        Un-normalising is affine in every dimension (a binary one is 0 or 1 both ways): two points tell its inverse.
        """
        normalizer = self.processor.normalizer(self.processor.resolve_key(self.unnorm_key), "action")
        as_in_training = normalizer.normalize(actions)
        zero, one = (normalizer.unnormalize(np.full(normalizer.dim, x)) for x in (0, 1))
        constant = zero == one  # in robot units, whatever was predicted
        return np.where(constant, as_in_training, (actions - zero) / np.where(constant, 1, one - zero))

    def save_pretrained(self, folder: str) -> None:
        """Save model and processor, and their model card."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options) -> None:
        """Push model and processor, and their model card, to a Hub repository; options as for a model's `push_to_hub`."""
        self.model.push_to_hub(repo_id, **options)
        self.processor.push_to_hub(repo_id, **options)

    def untrained(self, seed: int = 0) -> "Policy":
        """The same policy with new random weights: a baseline."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            model = type(self.model)(copy.deepcopy(self.model.config))
        return Policy(model.to(self.model.device, self.model.dtype), self.processor, self.unnorm_key)


def _check_counts(**given) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is {value!r}; give a whole number, 1 or more")


__all__ = ["Policy", "Prediction"]
