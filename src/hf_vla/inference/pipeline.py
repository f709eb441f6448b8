"""`pipeline("vision-language-action", model=…)`: transformers' pipeline over a `Policy`.

```python
>>> import hf_vla
>>> from transformers import pipeline

>>> pipe = pipeline("vision-language-action", model="outputs/quickstart/policy")  # doctest: +SKIP
>>> pipe(images=["front.png"], text="open the drawer", state=state, seed=0)["actions"].shape  # doctest: +SKIP
(8, 4)
```
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from PIL.Image import DecompressionBombError
from transformers import AutoModel
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .observations import checked, views
from .policy import Policy

TASK = "vision-language-action"
_PARAMETERS = ("unnorm_key", "seed", "num_inference_steps")
# What `transformers.pipeline` hands on of its own arguments.
_OF_LOADING = ("local_files_only",)


class VisionLanguageActionPipeline(Pipeline):
    """Observations in, action chunks in robot units out.

    Args:
        model, processor: a policy's. `transformers.pipeline` loads both where `model` is a folder or Hub repository, in our
            format or in StarVLA's; what these need is in `model_kwargs`, for example `model_kwargs={"base_vlm": …}`.
        unnorm_key, seed, num_inference_steps: for all calls, where a call does not say otherwise.
        device, batch_size, …: as for every pipeline.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (unnorm_key := self._forward_params.get("unnorm_key")) is not None:
            self.processor.resolve_key(unnorm_key)  # a wrong key is an error now

    def __call__(
        self, observation=None, *, images=None, text=None, state=None, batch_size: int | None = None, **kwargs
    ):
        """Predict.

        Args:
            observation: {"image": [camera images], "lang": instruction, "state": (S,) or (1, S), optional}, robot units; a list
                of these; or a generator or dataset of them. Images are PIL images, arrays, paths or URLs.
            images, text, state: in its place, one observation's parts, or with a list of texts those of several:
                images=[[…], […]], text=[…, …], state=[…, …].
            batch_size: how many observations go through the model at once; by default the pipeline's, else a list as a whole.
            unnorm_key: whose statistics; optional where the processor knows only one.
            seed: of the noise. An observation's actions are then the same whatever is predicted beside it, and those of
                `Policy.infer` after `reset(seed)`. Without a seed, noise follows torch's global generator.
            num_inference_steps: denoising steps, for frameworks that have them.

        Returns:
            {"actions": float32 array (action_horizon, action_dim) in robot units, "action_names": one name a dimension}; a
            list of these for a list; a generator of them for a generator or dataset.

        Raises:
            ValueError: an observation lacks something, or something can't be read or has another shape, type or value.
            TypeError: an unknown argument.
        """
        given = _merge(observation, images, text, state)
        params = self._sanitize_parameters(**kwargs)
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        params = [default | own for default, own in zip(defaults, params, strict=True)]
        size = batch_size or self._batch_size
        if isinstance(given, Mapping):
            return self.run_single([given], *params)[0]
        if isinstance(given, list | tuple):
            return [
                result for batch in _batches(given, size or len(given)) for result in self.run_single(batch, *params)
            ]
        return (result for batch in _batches(given, size or 1) for result in self.run_single(batch, *params))

    def _sanitize_parameters(self, **kwargs):
        kwargs = {name: value for name, value in kwargs.items() if name not in _OF_LOADING}
        if unknown := sorted(set(kwargs) - set(_PARAMETERS)):
            raise TypeError(f"the {TASK} pipeline takes no {', '.join(unknown)}; it takes {', '.join(_PARAMETERS)}")
        return {}, kwargs, {}

    def preprocess(self, batch: list[Mapping]) -> dict:
        """Observations whose images are read."""
        batch = checked(batch)
        read = [
            [_read(view, f"image {v} of observation {i}") for v, view in enumerate(views(o["image"]))]
            for i, o in enumerate(batch)
        ]
        return {"observations": [dict(o) | {"image": images} for o, images in zip(batch, read, strict=True)]}

    def _forward(self, inputs: dict, unnorm_key: str | None = None, **drawn) -> dict:
        policy = Policy(self.model, self.processor, unnorm_key)
        return {"actions": policy.infer(inputs["observations"], **drawn), "action_names": policy.action_names}

    def postprocess(self, outputs: dict) -> list[dict]:
        return [{"actions": actions, "action_names": outputs["action_names"]} for actions in outputs["actions"]]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model and processor. Unlike the base class's, without a copy of this code: `import hf_vla` is what loads it."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _merge(observation, images, text, state):
    """Observations of either way of giving them."""
    apart = {"image": images, "lang": text, "state": state}
    if observation is not None:
        if named := [name for name, value in apart.items() if value is not None]:
            raise ValueError(
                f"give an observation, or images=, text= and state=, not both (besides it: {', '.join(named)})"
            )
        return observation
    apart = {name: value for name, value in apart.items() if value is not None}
    if not isinstance(text, list | tuple):
        return apart
    lengths = {name: len(value) for name, value in apart.items()}
    if set(lengths.values()) != {len(text)}:
        raise ValueError(
            f"{len(text)} texts need as many lists of images, and states where there are any; got {lengths}"
        )
    return [dict(zip(apart, parts, strict=True)) for parts in zip(*apart.values(), strict=True)]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _read(image, where: str):
    """A path's or URL's image; anything else as it is, for the processor to check."""
    if not isinstance(image, str | os.PathLike):
        return image
    try:
        return load_image(os.fspath(image))
    except (OSError, ValueError, DecompressionBombError) as error:
        raise ValueError(f"{where}, {str(image)[:200]!r}, can't be read: {str(error)[:200]}") from error


PIPELINE_REGISTRY.register_pipeline(TASK, VisionLanguageActionPipeline, pt_model=AutoModel, type="multimodal")

__all__ = ["TASK", "VisionLanguageActionPipeline"]
