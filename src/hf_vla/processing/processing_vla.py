"""The base of all frameworks' processors: observations in, tensors out; normalised actions in, robot units out."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from ..cards.model_card import LeavesModelCard
from ..utils.observations import check_finite, check_instruction, number_array, rgb_image
from ..utils.suggestions import did_you_mean
from .images import resized, to_samples
from .prompt import add_advantage, add_state, apply_template, reserved_pattern
from .robot_units import RobotUnits
from .saved_processor import SavedProcessor
from .settings import ProcessorSettings
from .vlm_inputs import encode, encode_conversations, image_token_positions, readable

logger = logging.get_logger(__name__)


class VLAProcessor(RobotUnits, SavedProcessor, LeavesModelCard, ProcessorMixin):
    r"""
    Base of every policy's processor.

    Args:
        image_processor, tokenizer: the backbone's.
        chat_template (`str`, *optional*): the backbone's; by default its tokenizer's.
        settings: see [`~hf_vla.processing.settings.ProcessorSettings`]; each is an attribute.

    A framework with settings of its own takes them as keywords, sets attributes of the same names, and hands the others on:

    ```python
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, *, scale=1.0, **settings):
        super().__init__(image_processor, tokenizer, chat_template, **settings)
        self.scale = scale
    ```
    """

    #: The framework's configuration, which says in `state_input` how the robot's state is given to the model
    config_class: type | None = None
    #: Texts besides the tokenizer's special tokens that an instruction may not contain, as the framework adds them to prompts
    reserved_texts: tuple[str, ...] = ()

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **settings):
        if unknown := [name for name in settings if name not in ProcessorSettings.__dataclass_fields__]:
            raise TypeError(
                f"{type(self).__name__} has no setting {unknown[0]!r}{did_you_mean(unknown[0], self.settings())}"
            )
        chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        vars(self).update(vars(ProcessorSettings(**settings)))

    @property
    def state_input(self) -> str | None:
        """How the robot's state is given to the model: "head", a tensor for the action head; "prompt", text; or None."""
        if self.config_class is None:
            raise ValueError(f"{type(self).__name__} has no config_class; set it to its framework's configuration")
        return self.config_class.state_input

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        state=None,
        actions=None,
        unnorm_key: str | Sequence[str] | None = None,
        normalized: bool = False,
        return_tensors: str = "pt",
        advantage: str | Sequence[str | None] | None = None,
    ) -> BatchFeature:
        """Convert observations (and, for training, actions) of B samples to the model's inputs.

        Args:
            images: B lists of 1..V PIL images or (height, width, 3) arrays; one image or one list of images = one sample.
            text: B instructions; one string = one sample.
            state: (B, state_dim) or (B, 1, state_dim), robot units.
            actions: (B, T, action_dim), robot units.
            unnorm_key: whose statistics; one for all samples or one each. Optional if there is only one.
            normalized: `state` and `actions` are in normalised units already; no statistics are used.
            return_tensors: "pt".
            advantage: for policies that were trained on advantages: "positive", "negative", or None for a prompt that tells none;
                one for all samples or one each.

        Raises:
            ValueError: an argument has another count, shape, type or value than is possible.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        texts = _strings(text)
        if not texts:
            raise ValueError(f"text is {text!r:.80}; give one instruction, or one per sample")
        self.check_instructions(texts)
        samples = to_samples(images)
        if len(samples) != len(texts):
            raise ValueError(
                f"received {len(samples)} image samples for {len(texts)} instructions; each instruction needs its own "
                "list of camera images, for example images=[[front], [front, wrist]] for two"
            )
        keys, needed = None, not normalized and (state is not None or actions is not None)
        if needed or (unnorm_key is not None and self.statistics):  # a wrong key is an error even if it isn't needed
            keys = self._keys(unnorm_key, len(texts))
        keys = keys if needed else None
        state = self._state(state, keys, len(texts))
        texts = self._with_advantages(texts, advantage)
        prompts = [self._prompt(t, None if state is None else state[i, 0]) for i, t in enumerate(texts)]
        if actions is not None:
            actions = self._actions(actions, keys, len(texts))
        inputs = self._encode(self._resized(samples, unnorm_key), prompts, actions)
        if state is not None and self.state_input == "head":
            inputs["state"] = torch.from_numpy(state)
        if actions is not None:
            inputs["actions"] = torch.from_numpy(actions)
        return BatchFeature(inputs)

    def check_instructions(self, texts: Iterable[str], name: str = "the instruction of sample {index}") -> None:
        """Check that texts can be instructions of this processor's prompts.

        Args:
            name: what a message calls a text; "{index}" stands for its place.

        Raises:
            ValueError: one is blank, or contains a special token of the tokenizer or a mark that the framework adds.
        """
        pattern = reserved_pattern(self.tokenizer, self.reserved_texts)
        for index, text in enumerate(texts):
            check_instruction(text, name.format(index=index))
            if (found := pattern.search(text)) is not None:
                raise ValueError(
                    f"{name.format(index=index)} contains {found[0]!r}, which stands for something else in a prompt (a special "
                    "token of the backbone, or a mark of the framework); leave it out"
                )

    def _with_advantages(self, texts: list[str], advantage: str | Sequence[str | None] | None) -> list[str]:
        given = [advantage] * len(texts) if advantage is None or isinstance(advantage, str) else list(advantage)
        if len(given) != len(texts):
            raise ValueError(
                f"{len(given)} advantages for {len(texts)} instructions; give one for all, or one for each"
            )
        return [add_advantage(self.advantage_template, t, a) for t, a in zip(texts, given, strict=True)]

    def _encode(self, images: list[list], prompts: list[str], actions: np.ndarray | None) -> dict[str, torch.Tensor]:
        """Return the backbone's tensors, of resized images and texts; `actions` are normalised (B, T, A), which FAST encodes."""
        return encode(self, images, prompts)

    def encode_conversations(self, images, conversations) -> BatchFeature:
        """Convert image-text samples for co-training, see [`~hf_vla.processing.vlm_inputs.encode_conversations`].

        `images` are resized as the robot's are.
        """
        samples = [
            [resized(rgb_image(view, f"an image of sample {index}"), self.image_size) for view in views]
            for index, views in enumerate(images)
        ]
        return BatchFeature(encode_conversations(self, samples, conversations))

    def image_token_positions(self, images, input_ids: torch.Tensor, unnorm_key=None) -> list[list[np.ndarray]]:
        """Return where each image's tokens lie, see [`~hf_vla.processing.vlm_inputs.image_token_positions`].

        `images` and `unnorm_key` as given to the processor, `input_ids` (B, L) as it returned them.
        """
        return image_token_positions(self, self._resized(to_samples(images), unnorm_key), input_ids)

    def _resized(self, samples: list[list], unnorm_key: str | Sequence[str] | None) -> list[list]:
        """Resize images to `image_size`, or if that is not set, to what the policy was trained on, if that is known."""
        if self.image_size is not None:
            return [[resized(view, self.image_size) for view in views] for views in samples]
        if not self.input_contract.by_key or unnorm_key is None or isinstance(unnorm_key, str):
            unnorm_key = [unnorm_key if self.input_contract.by_key else None] * len(samples)
        contracts = [self.input_contract.of(key) for key in unnorm_key]
        return [
            [self._resized_to_trained(view, contract.size_of_image(v)) for v, view in enumerate(views)]
            for views, contract in zip(samples, contracts, strict=True)
        ]

    @staticmethod
    def _resized_to_trained(image, size: list[int] | None):
        if size is not None and image.size != tuple(size):
            logger.warning_once(
                f"images of {image.width}x{image.height} pixels are resized to {size[0]}x{size[1]}, at which the policy was trained"
            )
        return resized(image, size)

    def readable(self, input_ids) -> str:
        """Return the text of a sample's tokens (L,), special ones included; a run of one is written "<|image_pad|>×36"."""
        return readable(self.tokenizer, input_ids)

    def _prompt(self, instruction: str, state: np.ndarray | None) -> str:
        """Return the user turn's text: the instruction, the state's bins if the framework reads them there, the template."""
        if state is not None and self.state_input == "prompt":
            instruction = add_state(instruction, state)
        return apply_template(self.prompt_template, instruction)

    def _state(self, state, keys: list[str] | None, batch: int) -> np.ndarray | None:
        """(B, S) or (B, 1, S) -> normalised float32 (B, 1, S)"""
        if state is None:
            return None
        names = [self.state_names(key) for key in keys or [None] * batch]
        state = number_array(state, "state", names[0])
        given = state.shape
        if state.ndim == 2:
            state = state[:, None]
        if state.ndim != 3 or len(state) != batch or state.shape[1] != 1:
            raise ValueError(
                f"state has shape {given} for {batch} samples; give (B, state_dim) or (B, 1, state_dim): no framework reads "
                "a history of states"
            )
        if not np.isfinite(state).all():
            for index, of_sample in enumerate(state):
                check_finite(of_sample, f"the state of sample {index}", names[index])
        if keys is not None:
            state = self._normalize(state, keys, "state")
        if self.state_input == "head" and self.state_dim and state.shape[-1] != self.state_dim:
            raise ValueError(f"state has {state.shape[-1]} dimensions; this policy's has {self.state_dim}")
        return np.ascontiguousarray(state, dtype=np.float32)

    def _actions(self, actions, keys: list[str] | None, batch: int) -> np.ndarray:
        """(B, T, A) -> normalised float32 (B, T, A)"""
        actions = number_array(actions, "actions")
        dim = self.action_dim or "action_dim"
        if actions.ndim != 3 or len(actions) != batch or (self.action_dim and actions.shape[-1] != self.action_dim):
            raise ValueError(f"actions have shape {actions.shape} for {batch} samples; give (B, T, {dim})")
        if self.action_horizon and actions.shape[1] < self.action_horizon:
            raise ValueError(
                f"actions have {actions.shape[1]} steps; this policy's horizon is {self.action_horizon}: give at least that"
            )
        if not np.isfinite(actions).all():
            sample, step, d = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise ValueError(
                f"actions hold NaN or infinite numbers, first at sample {sample}, step {step}, dimension {d}; "
                "drop or repair these frames"
            )
        if keys is not None:
            actions = self._normalize(actions, keys, "action")
        return np.ascontiguousarray(actions, dtype=np.float32)


def _strings(text) -> list[str]:
    """Return one string, or a sequence or array of strings, as a list; empty if it is neither."""
    if isinstance(text, str):
        return [text]
    texts = text.tolist() if isinstance(text, np.ndarray) else text
    texts = list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    return texts if all(isinstance(t, str) for t in texts) else []


__all__ = ["VLAProcessor"]
