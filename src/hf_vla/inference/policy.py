"""`Policy`: model and processor in one object, for simulators, servers and demos; observations in, robot units out."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch

from ..modeling.real_time_chunking import RealTimeChunking
from ..modeling.sampling import DenoisingStep
from ..modeling.stages import timed_by
from ..processing.input_contract import InputContract
from ..processing.prompt import ADVANTAGES
from ..registry import class_of, frameworks
from ..utils.episode_seeds import episode_seeds
from ..utils.observations import number_array
from .backbone_attention import BackboneRecorder
from .fingerprint import fingerprint
from .observations import read, states
from .prediction import Prediction, Recorder, Stopwatch
from .trained_inputs import as_trained, in_camera_order

#: argument of `infer` or `predict` -> the option of the model's sampler that it needs
_NEEDED_OPTION = {
    "num_samples": "noise",
    "num_inference_steps": "num_inference_steps",
    "previous_chunk": "real_time_chunking",
    "inference_delay": "real_time_chunking",
}


class Policy:
    """A model and its processor.

    Args:
        model: a policy model, for example from `AutoModel.from_pretrained`.
        processor: its processor.
        unnorm_key: the statistics key; optional if the processor has only one.
        ignore_state: drop the states of observations, for callers that always send one, if the policy was trained without.
        advantage: what a policy that was trained on advantages is asked for: "positive", "negative", or "none" for prompts that
            don't tell one; "auto" is positive for such a policy, and nothing for others.
        guidance: beta of plain + beta (conditional - plain), which leads further away from what a prompt without advantage gives;
            1 is none. Each prediction then runs both prompts.

    Raises:
        ValueError: an unknown key, `ignore_state` for a policy that was trained with the state, an advantage for one that was
            not trained on any, or guidance of a framework that can't be guided.

    ```python
    >>> policy = Policy.from_pretrained("outputs/quickstart/policy")  # doctest: +SKIP
    >>> actions = policy.infer({"image": [front], "lang": "open the drawer", "state": state})  # doctest: +SKIP
    >>> actions.shape  # (action_horizon, action_dim)  # doctest: +SKIP
    (8, 4)
    ```
    """

    def __init__(
        self,
        model,
        processor,
        unnorm_key: str | None = None,
        *,
        ignore_state: bool = False,
        advantage: str = "auto",
        guidance: float = 1.0,
    ):
        self.model, self.processor, self.unnorm_key = model.eval(), processor, unnorm_key
        self.ignore_state = ignore_state
        #: seconds per stage of the last `infer` or `predict`: "processor", "model", "unnormalize"
        self.seconds: dict[str, float] = {}
        self._episode: Iterator[int] | None = None
        if processor.statistics:
            processor.resolve_key(unnorm_key)  # a wrong key fails here, not on the robot
        if ignore_state and self.input_contract.uses_state:
            raise ValueError(
                "ignore_state is for policies that were trained without the robot's state; this one needs it, so leave "
                "ignore_state out"
            )
        #: what prompts tell: "positive", "negative" or None
        self.advantage = _advantage(advantage, processor)
        self.guidance = _checked_guidance(guidance, self.advantage, model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        unnorm_key: str | None = None,
        device=None,
        dtype="auto",
        *,
        ignore_state: bool = False,
        advantage: str = "auto",
        guidance: float = 1.0,
        compile: bool | Mapping = False,
        quantization: str | None = None,
        **kwargs,
    ):
        """Load model and processor from a folder or Hub repository.

        Args:
            unnorm_key, ignore_state, advantage, guidance: as for the class.
            device: device of the model; default: the GPU if there is one.
            dtype: dtype of the weights; "auto" keeps the checkpoint's.
            compile: call `compile_for_inference`, with these arguments if it is a mapping of them.
            quantization: "int8", "int4" or "fp8": the weights of the backbone's linear layers in 8 or 4 bits, see
                [`~hf_vla.checkpoints.quantization.QUANTIZATIONS`]; all else keeps its dtype.
            kwargs: for the `from_pretrained` of both (`base_vlm=`, `revision=`, …), with these exceptions: `base_model` (the
                present location of an adapter's base model, if it has moved), `quantization_config` (of the backbone) and fields
                of the configuration are for the model only, `robot_type` and the processor's settings for the processor only.

        Raises:
            OSError: there is no such folder or repository, or files are missing from it.
        """
        from transformers import AutoModel, AutoProcessor

        from ..checkpoints.opening import open_with

        checkpoint, kwargs = open_with(name_or_path, kwargs)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        of_model, of_processor = _options_of(checkpoint.model_type)
        model_kwargs = {name: kwargs.pop(name) for name in of_model if name in kwargs}
        processor_kwargs = {name: kwargs.pop(name) for name in of_processor if name in kwargs}
        if quantization is not None:
            model_kwargs["quantization"] = quantization
        if quantization is not None or model_kwargs.get("quantization_config") is not None:
            model_kwargs["device_map"] = device  # quantised weights are created on their final device
        model = AutoModel.from_pretrained(checkpoint, dtype=dtype, **model_kwargs, **kwargs)
        if "device_map" not in model_kwargs:
            model = model.to(device)
        processor = AutoProcessor.from_pretrained(checkpoint, **processor_kwargs, **kwargs)
        asked = {"ignore_state": ignore_state, "advantage": advantage, "guidance": guidance}
        policy = cls(model, processor, unnorm_key, **asked)
        if compile or isinstance(compile, Mapping):
            policy.compile_for_inference(**({} if compile is True else compile))
        return policy

    @property
    def input_contract(self) -> InputContract:
        """What observations must be like; its `uses_state` is also true if actions relative to the state need it."""
        if not self.processor.statistics:
            return self.processor.input_contract.of(self.unnorm_key)
        key = self.processor.resolve_key(self.unnorm_key)
        contract = self.processor.input_contract.of(key)
        return replace(contract, uses_state=True) if self.processor.action_mode(key).needs_state else contract

    def prepare(self, observations: Sequence[Mapping]) -> list[dict]:
        """Read observations, and compare them with what the policy was trained on; `infer` begins with it.

        Returns:
            as [`~hf_vla.inference.observations.read`], with the images in the order of the policy's cameras.

        Raises:
            ValueError: as in `infer`.
        """
        contract = self.input_contract
        batch = read(in_camera_order(observations, contract), self.state_names)
        if self.processor.statistics and any("state" not in observation for observation in batch):
            mode = self.processor.action_mode(self.processor.resolve_key(self.unnorm_key))
            if mode.needs_state:
                raise ValueError(
                    f"this policy's actions are {mode.name}, differences to the robot's state: the observation needs 'state'"
                )
        return as_trained(batch, contract, self.ignore_state)

    def compile_for_inference(
        self,
        batch_sizes: Sequence[int] = (1,),
        views: int | Sequence[tuple[int, int]] | None = None,
        num_inference_steps: int | None = None,
        *,
        instruction: str = "pick up the red block and put it on the green plate",
        backend=None,
    ) -> None:
        """Make `infer` and `predict` run the model as one compiled graph, and compile those for the given batches.

        What is compiled, and when more is, says [`~hf_vla.modeling.modeling_vla.VLAPreTrainedModel.compile_for_inference`]. It
        takes minutes for a large policy. Predictions differ in rounding only.

        Args:
            batch_sizes: numbers of observations per call.
            views: the camera images of an observation: their number, or (width, height) of each. By default those that the
                policy was trained on; one image if that is not known.
            num_inference_steps: denoising steps; default: the policy's.
            instruction: one as long as those to come, in steps of some ten words.
            backend: of `torch.compile`.
        """
        _check_counts(1, num_inference_steps=num_inference_steps)
        self._check_can_sample(num_inference_steps=num_inference_steps)
        self.model.compile_for_inference(backend)
        observation = self.blank_observation(views, instruction)
        for batch_size in batch_sizes:
            _check_counts(1, batch_size=batch_size)
            self.infer([observation] * batch_size, num_inference_steps=num_inference_steps)

    def blank_observation(
        self, views: int | Sequence[tuple[int, int]] | None = None, instruction: str = "pick up the red block"
    ) -> dict:
        """Return a black observation of the kind that the policy was trained on, as far as that is known.

        Args:
            views: the camera images: their number, or (width, height) of each; default: as in training, else one.
            instruction: the instruction.
        """
        key = self.processor.resolve_key(self.unnorm_key) if self.processor.statistics else None
        contract = self.input_contract
        if views is None:
            views = contract.image_sizes or len(contract.cameras or [None])
        if isinstance(views, int):
            known = contract.image_sizes if len(contract.image_sizes or ()) == views else None
            views = known or [self.processor.image_size or (224, 224)] * views
        observation = {
            "image": [np.zeros((height, width, 3), np.uint8) for width, height in views],
            "lang": instruction,
        }
        config, uses_state = self.model.config, contract.uses_state
        if uses_state is None:
            uses_state = config.state_input == "head" and config.state_dim > 0
        if uses_state and key is not None and self.processor.statistics[key].get("state") is not None:
            observation["state"] = np.zeros(self.processor.normalizer(key, "state").dim, np.float32)
        return observation

    @property
    def action_horizon(self) -> int:
        return self.model.config.action_horizon

    @property
    def action_names(self) -> list[str]:
        """One name per action dimension; "action 0", "action 1", … if the processor has none."""
        names = self.processor.action_names.get(self.processor.resolve_key(self.unnorm_key))
        return list(names or (f"action {d}" for d in range(self.model.config.action_dim)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short text that tells this policy from others, also from its own earlier checkpoints.

        It is made of some values of each weight, of the configuration and of the processor's settings, not of names of
        folders: a copy has the same. One that is asked for another advantage, or guided, counts as another.
        """
        asked = {} if self.advantage == _advantage("auto", self.processor) else {"advantage": self.advantage}
        return fingerprint(self.model, self.processor, asked | self.guiding)

    @property
    def state_names(self) -> list[str] | None:
        """One name per dimension of the state, or None if they are not known."""
        keys = self.processor.statistics
        key = self.unnorm_key if self.unnorm_key is not None or len(keys) != 1 else next(iter(keys))
        return self.processor.state_names(key)

    @property
    def denoises(self) -> bool:
        """Whether actions are sampled by denoising, with noise, denoising steps and real-time chunking."""
        return "noise" in self.model.sampling_options

    @property
    def supports_real_time_chunking(self) -> bool:
        """Whether `infer` takes `previous_chunk` and `inference_delay`."""
        return "real_time_chunking" in self.model.sampling_options

    def reset(self, seed: int | None = None) -> None:
        """Start an episode. With a seed, sampling is reproducible; without one, it follows torch's global generator."""
        if seed is not None:
            self._seeded(seed)  # a wrong one fails here
        self._episode = None if seed is None else episode_seeds(seed)

    def _next_generator(self) -> torch.Generator | None:
        """Return the generator of the episode's next call. `PolicyClient` sends the same seeds to a server."""
        return None if self._episode is None else self._seeded(next(self._episode))

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
        seed: int | Sequence[int] | None = None,
        on_step: Callable[[DenoisingStep], None] | None = None,
    ) -> np.ndarray:
        """Predict action chunks for one observation or a batch of them.

        Args:
            observation: {"image": [PIL images or HWC arrays], "lang": instruction, "state": (1, S) or (S,)}, in robot units,
                or a list of these. Images are a list in the order of the policy's cameras, or {camera: image}. The state is
                left out if the policy was trained without.
            previous_chunk: for real-time chunking with the flow-matching frameworks: the part of the previous chunk that was
                not yet executed when the observation was taken, (H', action_dim) in robot units; (B, H', action_dim) for a
                list.
            inference_delay: how many of its steps are executed before this call's chunk is ready. They are returned
                unchanged; execute the new chunk from step `inference_delay` on.
            num_inference_steps: denoising steps; default: the policy's.
            seed: seed of this call's noise, in place of the episode's; for a list of observations also one seed for each. Each
                observation then gets the actions that it would get alone after `reset(seed)`, whatever else is in the batch.
            on_step: called after each denoising step; an exception that it raises ends the prediction. Frameworks that don't
                denoise do not call it.

        Returns:
            float32 array (action_horizon, action_dim) in robot units; (B, action_horizon, action_dim) for a list. The actions
            are absolute even if the policy was trained on actions relative to the state ([`hf_vla.robots.action_modes`]).

        Raises:
            ValueError: an observation lacks an image or the instruction, is not like those that the policy was trained on (see
                `input_contract`), or something has a wrong shape, type or value.
        """
        single = isinstance(observation, Mapping)
        batch = self.prepare([observation] if single else observation)
        state = states(batch)
        _check_counts(1, num_inference_steps=num_inference_steps)
        _check_counts(0, inference_delay=inference_delay)
        self._check_can_sample(num_inference_steps=num_inference_steps)
        seeded = [self._seeded(each) for each in _seeds(seed, len(batch))]
        generator = seeded[0] if seeded else self._next_generator()
        sampling = {"generator": generator, "num_inference_steps": num_inference_steps}
        if on_step is not None and "on_step" in self.model.sampling_options:
            sampling["on_step"] = on_step
        if seeded and self.denoises:
            sampling["noise"] = torch.cat([self._noise(1, each) for each in seeded])
        elif generator is not None and self.denoises:  # as in `predict`, so that both draw the same noise
            shape = (len(batch), self.action_horizon, self.model.config.action_dim)
            sampling["noise"] = torch.randn(shape, generator=generator, device=self.model.device, dtype=torch.float32)
        sampling |= self.guiding
        watch = Stopwatch(self.model.device)
        inputs = self._inputs(batch, state, watch)
        if previous_chunk is not None or inference_delay:
            sampling["real_time_chunking"] = self._real_time_chunking(previous_chunk, inference_delay, state, single)
        with watch.stage("model"):
            normalized = self.model.predict_action(**inputs, **sampling)
        with watch.stage("unnormalize"):
            actions = self.processor.unnormalize_actions(normalized, self.unnorm_key, state)
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
        """Predict action chunks for one observation, and report how they were computed.

        Args:
            observation: a single one, as in `infer`.
            num_samples: number of chunks to sample. The backbone runs once, however many there are; the action head runs on
                all of them as one batch.
            num_inference_steps: denoising steps; default: the policy's.
            seed: seed of the noise. The first sample is then what `infer` returns after `reset(seed)`, and the episode's own
                noise does not advance; without a seed, the noise is the episode's next.
            trace: record the denoising steps, and where in the images the action head attends; of a framework that does not
                denoise, where the backbone attends from the tokens that become actions, and no other thread may use the model
                meanwhile. Attention weights are then computed explicitly, which may change the actions by rounding errors.

        Raises:
            ValueError: as in `infer`; or samples or steps are requested from a framework that does not denoise.
        """
        batch = self.prepare([observation])
        state = states(batch)
        _check_counts(1, num_samples=num_samples, num_inference_steps=num_inference_steps)
        several = num_samples if num_samples > 1 else None
        self._check_can_sample(num_samples=several, num_inference_steps=num_inference_steps)
        if trace and not isinstance(self.model, torch.nn.Module):
            raise ValueError("an exported policy has no trace: leave trace out, or take the policy that was exported")
        if trace and self.guiding:
            raise ValueError("a guided prediction has no trace: leave trace out, or load the policy with guidance=1")
        generator = self._next_generator() if seed is None else self._seeded(seed)
        key = self.processor.resolve_key(self.unnorm_key)
        watch = Stopwatch(self.model.device)
        inputs = self._inputs(batch, state, watch)
        input_ids = inputs["input_ids"][0].cpu()
        sampling = {"generator": generator, "num_inference_steps": num_inference_steps, **self.guiding}
        if self.denoises:
            sampling["noise"] = self._noise(num_samples, generator)
        recorder = None
        if trace:
            (positions,) = self.processor.image_token_positions(
                [batch[0]["image"]], inputs["input_ids"], self.unnorm_key
            )
            if self.denoises:
                recorder = Recorder(positions)
                sampling |= {"on_step": recorder, "output_attentions": True}
            else:
                recorder = BackboneRecorder(self.model, inputs["input_ids"], positions)
        watching = recorder.watching() if isinstance(recorder, BackboneRecorder) else contextlib.nullcontext()
        with watching, watch.stage("model"), timed_by(watch.stage):
            normalized = self.model.predict_action(**inputs, **sampling)
        if "backbone" in watch.seconds:
            watch.seconds["action head"] = watch.seconds["model"] - watch.seconds["backbone"]
        with watch.stage("unnormalize"):
            actions = self.processor.unnormalize_actions(normalized, key, state)
        self.seconds = watch.seconds
        chunks = None
        if isinstance(recorder, Recorder):
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

    def model_inputs(self, observations: Sequence[Mapping]):
        """Return what `model.predict_action` takes of observations, on the model's device.

        Of a guided policy there are two rows per observation, with and without the condition, and `predict_action` also takes
        `guiding`.

        Raises:
            ValueError: as in `infer`.
        """
        batch = self.prepare(observations)
        return self._inputs(batch, states(batch), Stopwatch(self.model.device)).to(self.model.device)

    def _inputs(self, batch: list[dict], state: np.ndarray | None, watch: Stopwatch):
        """Return the model's inputs, on its device."""
        if self.processor.statistics:
            key = self.processor.resolve_key(self.unnorm_key)
            if self.processor.input_contract.of(key).uses_state is False:  # needed for the actions only
                state = None
        advantages = [self.advantage] * len(batch)
        if self.guiding:  # the same observations by prompts that tell no advantage
            advantages += [None] * len(batch)
            batch, state = [*batch, *batch], None if state is None else np.concatenate([state, state])
        with watch.stage("processor"):
            inputs = self.processor(
                images=[o["image"] for o in batch],
                text=[o["lang"] for o in batch],
                state=state,
                unnorm_key=self.unnorm_key,
                **({} if self.advantage is None else {"advantage": advantages}),
            )
            # A compiled model reads prompts and image sizes on the host before it moves them.
            return inputs if self.model.compiled_sampling is not None else inputs.to(self.model.device)

    @property
    def guiding(self) -> dict[str, float]:
        """The model's argument for guidance, beside `model_inputs`; none at 1, which needs the one prompt only."""
        return {} if self.guidance == 1 else {"guidance": self.guidance}

    def _noise(self, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        """Draw noise, float32 (num_samples, action_horizon, action_dim)."""
        shape = (1, self.action_horizon, self.model.config.action_dim)
        # One draw per sample: the numbers of a single draw for all samples would depend on how many there are.
        return torch.cat(
            [
                torch.randn(shape, generator=generator, device=self.model.device, dtype=torch.float32)
                for _ in range(num_samples)
            ]
        )

    def _check_can_sample(self, **given) -> None:
        """Raise a ValueError if the framework lacks a requested feature."""
        known = self.model.sampling_options
        if asked := [name for name, value in given.items() if value and _NEEDED_OPTION[name] not in known]:
            how = "does not denoise its actions as flow matching does" if known else "does not denoise its actions"
            raise ValueError(
                f"{type(self.model).__name__} {how}; leave out {', '.join(asked)}, or use a framework that does: QwenPI, "
                "QwenPI_v3, QwenGR00T, QwenDual or QwenDiscreteDiffusion"
            )

    def _real_time_chunking(self, previous_chunk, inference_delay: int, state, single: bool) -> RealTimeChunking:
        """Build the model's argument from a previous chunk in robot units."""
        self._check_can_sample(previous_chunk=previous_chunk is not None, inference_delay=inference_delay)
        if previous_chunk is not None:
            previous_chunk = number_array(previous_chunk, "previous_chunk", self.action_names)
            previous_chunk = previous_chunk[None] if single else previous_chunk
            previous_chunk = self.processor.relative_actions(previous_chunk, state, self.unnorm_key)
            previous_chunk = torch.from_numpy(self._normalize_executed(previous_chunk))
        return RealTimeChunking(previous_chunk, inference_delay)

    def _normalize_executed(self, actions: np.ndarray) -> np.ndarray:
        """Invert un-normalisation: robot units (…, action_dim), relative if the statistics are -> normalised.

        `Normalizer.normalize` clips in mode q99, for training, but predictions beyond the clip range are executed unclipped.
        Un-normalisation is affine in every dimension (a binary one is 0 or 1 on both sides): two points determine its inverse.
        """
        normalizer = self.processor.normalizer(self.processor.resolve_key(self.unnorm_key), "action")
        as_in_training = normalizer.normalize(actions)
        zero, one = (normalizer.unnormalize(np.full(normalizer.dim, x)) for x in (0, 1))
        constant = zero == one  # in robot units, whatever the prediction
        return np.where(constant, as_in_training, (actions - zero) / np.where(constant, 1, one - zero))

    def save_pretrained(self, folder: str) -> None:
        """Save the model, the processor and their model card."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options) -> None:
        """Push the model, the processor and their model card to a Hub repository; `options` as in a model's `push_to_hub`."""
        self.model.push_to_hub(repo_id, **options)
        self.processor.push_to_hub(repo_id, **options)

    def untrained(self, seed: int = 0) -> "Policy":
        """Return the same policy with new random weights, as a baseline.

        Raises:
            ValueError: it is an exported policy, whose weights are fixed.
        """
        if not isinstance(self.model, torch.nn.Module):
            raise ValueError(
                "an exported policy has no weights that could be drawn anew; leave the untrained control out, or take the policy that "
                "was exported"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            model = type(self.model)(copy.deepcopy(self.model.config))
        model = model.to(self.model.device, self.model.dtype)
        asked = {"advantage": self.advantage or "none", "guidance": self.guidance}
        return Policy(model, self.processor, self.unnorm_key, ignore_state=self.ignore_state, **asked)


def _advantage(given: str, processor) -> str | None:
    """Return what prompts tell, of the argument `advantage`."""
    possible = ("auto", *ADVANTAGES, "none")
    if given not in possible:
        raise ValueError(f"advantage is {given!r:.80}; possible: {', '.join(possible)}")
    # Processors of one's own need not have this setting.
    is_told = getattr(processor, "advantage_template", None) is not None
    if given in ADVANTAGES and not is_told:
        raise ValueError(
            f"advantage is {given!r}, and this policy was not trained on advantages (advantage in a recipe); leave it out"
        )
    return (ADVANTAGES[0] if is_told else None) if given == "auto" else None if given == "none" else given


def _checked_guidance(guidance: float, advantage: str | None, model) -> float:
    if not isinstance(guidance, Real) or isinstance(guidance, bool) or not 0 < guidance < float("inf"):
        raise ValueError(f"guidance is {guidance!r}; give a number above 0, of which 1 is no guidance")
    if guidance == 1:
        return 1.0
    if advantage is None:
        raise ValueError(
            f"guidance is {guidance:g}, and prompts tell no advantage from which it could lead away; leave it out, or load a policy "
            "that was trained on advantages"
        )
    model.check_guidance()
    return float(guidance)


def _options_of(model_type: str | None) -> tuple[set[str], set[str]]:
    """Return the options of `from_pretrained` that are for a framework's model only, and for its processor only."""
    of_model, of_processor = {"base_model", "quantization_config"}, {"robot_type", "unnormalization"}
    if model_type in frameworks():
        own = set(class_of(model_type, "config").__dataclass_fields__)
        settings = set(class_of(model_type, "processor").settings())
        of_model, of_processor = of_model | (own - settings), of_processor | (settings - own)
    return of_model, of_processor


def _seeds(seed, number: int) -> list[int]:
    """Return one seed for each of `number` observations; none if `seed` is None."""
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return [] if seed is None else [seed] * number
    if len(seed) != number:
        raise ValueError(f"{len(seed)} seeds for {number} observations; give one for each, or one for all")
    return list(seed)


def _check_counts(least: int, **given) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} is {value!r}; give a whole number, {least} or more")


__all__ = ["Policy", "Prediction"]
