"""The settings that every policy's processor has, saved with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from ..robots.normalization import UNNORMALIZATIONS
from ..robots.robot_types import known_robot
from .input_contract import InputContract
from .prompt import check_advantage_template, check_template


@dataclass
class ProcessorSettings:
    """
    Settings of a [`~hf_vla.processing.processing_vla.VLAProcessor`]; they are its attributes, and arguments of its `__init__`.

    Args:
        statistics (`dict`, *optional*):
            {key: {"action": {"q01": […], …}, "state": {…}}}, as StarVLA's `dataset_statistics.json`. A key whose actions are
            relative to the state has "action_mode" and "absolute_dims" beside them, see [`hf_vla.robots.action_modes`].
        normalization_modes (`dict`, *optional*):
            {key: {"action": mode or one mode per dimension, "state": …}}. A key that is left out takes the modes of its robot
            type. Modes: [`~hf_vla.robots.normalization`].
        normalization_options (`dict`, *optional*):
            {key: {…}}, what a [`~hf_vla.robots.Normalizer`] must know besides the modes, such as "binary_threshold".
        robot_types (`dict`, *optional*):
            {key: name of its robot type, or None}. A key that is left out is of the robot type of that name, if there is one.
        unnormalization (`str`, *optional*, defaults to `"current"`):
            How actions return to robot units: "current", as StarVLA's server does it since May 2026, or "published", as the
            results before were obtained ([`~hf_vla.robots.Normalizer.unnormalize_as_published`]).
        action_names (`dict`, *optional*): {key: one name per dimension}.
        prompt_template (`str`, *optional*): text around the instruction; "{instruction}" stands for it, state text included.
        advantage_template (`str`, *optional*):
            How the prompt of a policy that was trained on advantages tells one: "{instruction} Advantage: {advantage}". None is a
            policy that is not told any.
        image_size (`[width, height]`, *optional*): images are resized to it (bicubic, aspect not kept); `None` leaves them.
        resize_to_patches (`bool`, *optional*, defaults to `False`):
            Then resize by PIL to a multiple of the patch size, as StarVLA does for Qwen2.5-VL.
        image_seq_len (`int`, *optional*):
            Tokens of one frame of an image, for backbones where it is fixed (Idefics3, SmolVLM2, InternVL).
        action_dim, state_dim, action_horizon (`int`, *optional*): the policy's, to check what is given.
        input_contract (`InputContract` or `dict`, *optional*):
            What the policy was trained on, see [`~hf_vla.processing.input_contract.InputContract`]; by default unknown.

    Raises:
        ValueError: a setting has no possible value.
    """

    statistics: Mapping[str, Any] | None = None
    normalization_modes: Mapping[str, Any] | None = None
    action_names: Mapping[str, Any] | None = None
    prompt_template: str | None = None
    image_size: Sequence[int] | None = None
    resize_to_patches: bool = False
    image_seq_len: int | None = None
    action_dim: int | None = None
    state_dim: int | None = None
    action_horizon: int | None = None
    normalization_options: Mapping[str, Any] | None = None
    robot_types: Mapping[str, str | None] | None = None
    unnormalization: str = "current"
    input_contract: InputContract | Mapping[str, Any] | None = None
    advantage_template: str | None = None

    def __post_init__(self):
        if self.image_size is not None:
            sides = list(self.image_size) if isinstance(self.image_size, Sequence | np.ndarray) else []
            if len(sides) != 2 or not all(isinstance(x, Integral) and x > 0 for x in sides):
                raise ValueError(f"image_size is {self.image_size!r}; give [width, height] or None")
            self.image_size = [int(side) for side in sides]
        check_template(self.prompt_template)
        check_advantage_template(self.advantage_template)
        if self.unnormalization not in UNNORMALIZATIONS:
            raise ValueError(f"unnormalization is {self.unnormalization!r}; possible: {', '.join(UNNORMALIZATIONS)}")
        for name in ("statistics", "normalization_modes", "normalization_options", "robot_types", "action_names"):
            if not isinstance(value := getattr(self, name), Mapping | None):
                raise ValueError(f"{name} is {value!r:.80}; give a dict with one entry per statistics key")
            setattr(self, name, value or {})
        self._check_entries()
        self.input_contract = InputContract.from_dict(self.input_contract)
        named = {key: robot.name if (robot := known_robot(key)) else None for key in self.statistics}
        self.robot_types = named | dict(self.robot_types)

    def _check_entries(self) -> None:
        for name in ("action_dim", "state_dim", "action_horizon"):
            size = getattr(self, name, None)
            if size is not None and (isinstance(size, bool) or not isinstance(size, Integral) or size < 0):
                raise ValueError(
                    f"{name} is {size!r:.80}; it must be a whole number, as in the policy's configuration, or None"
                )
        for key, entry in self.statistics.items():
            parts = (
                [entry, *(entry.get(part) or {} for part in ("action", "state"))]
                if isinstance(entry, Mapping)
                else [None]
            )
            if not all(isinstance(part, Mapping) for part in parts):
                raise ValueError(
                    f"statistics of {key!r} are {entry!r:.80}; give {{'action': {{'min': […], …}}, 'state': {{…}}}}"
                )
        for key, entry in self.normalization_modes.items():
            if not isinstance(entry, Mapping | None):
                raise ValueError(
                    f"normalization_modes of {key!r} are {entry!r:.80}; give {{'action': mode, 'state': mode}}"
                )
        for key, entry in self.action_names.items():
            if isinstance(entry, str) or not isinstance(entry, Sequence | None):
                raise ValueError(f"action_names of {key!r} are {entry!r:.80}; give a list with one name per dimension")


__all__ = ["ProcessorSettings"]
