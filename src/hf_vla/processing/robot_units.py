"""Converting between robot units and normalised units, by a processor's statistics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..robots.action_modes import ActionMode
from ..robots.normalization import Normalizer
from ..robots.robot_types import RobotType, find_robot, known_robot, robots_with_key
from ..utils.observations import check_finite, number_array
from ..utils.suggestions import did_you_mean

logger = logging.get_logger(__name__)


class RobotUnits:
    """Part of [`~hf_vla.processing.processing_vla.VLAProcessor`]: statistics keys, normalising, un-normalising.

    The settings `statistics`, `normalization_modes`, `normalization_options`, `robot_types`, `action_names`, `unnormalization` and
    `action_dim` are read when they are needed, so that they may be set at any time.
    """

    def resolve_key(self, key: str | None) -> str:
        """Return the statistics key that `key` means: itself, or the only one for None.

        Raises:
            ValueError: an unknown key, None if there are several, or no statistics at all.
        """
        known = sorted(self.statistics)
        if not known:
            raise ValueError(
                "this processor holds no statistics, so that robot units cannot be normalised: set "
                "processor.statistics = {key: {'action': …, 'state': …}}, or pass normalized=True with normalised values"
            )
        if key is None:
            if len(known) > 1:
                raise ValueError(
                    f"this processor knows several robots; choose one with unnorm_key=: {', '.join(known)}"
                )
            return known[0]
        if not isinstance(key, str):
            raise ValueError(
                f"unnorm_key is {key!r:.80}; give one of {', '.join(known)}, or a list with one per sample"
            )
        if key not in self.statistics:
            raise ValueError(f"unknown unnorm_key {key!r}; known are {', '.join(known)}{did_you_mean(key, known)}")
        return key

    def _keys(self, unnorm_key, batch: int) -> list[str]:
        if unnorm_key is None or isinstance(unnorm_key, str):
            return [self.resolve_key(unnorm_key)] * batch
        if not isinstance(unnorm_key, Sequence | np.ndarray) or np.ndim(unnorm_key) == 0:
            self.resolve_key(unnorm_key)  # raises, and says what is possible
        keys = [self.resolve_key(key) for key in unnorm_key]
        if len(keys) != batch:
            raise ValueError(f"{len(keys)} unnorm_keys for {batch} samples; give one for all or one each")
        return keys

    def robot_of(self, key: str) -> RobotType | None:
        """Return the robot type of a statistics key, or None if it is not known here by its name."""
        return known_robot(self.robot_types.get(key, key))

    def set_robot_type(self, robot_type: str | Path | RobotType | Mapping) -> None:
        """Take modes and names from a robot type, for all statistics keys or for those of a mapping {key: robot type}.

        Raises:
            ValueError: an unknown robot type or key, or statistics of other dimensions.
        """
        by_key = robot_type if isinstance(robot_type, Mapping) else dict.fromkeys(self.statistics, robot_type)
        for key, name in by_key.items():
            robot, of_key = find_robot(name), self.statistics[self.resolve_key(key)]
            modes = robot.modes(of_key, key)
            if (trained := self.input_contract.of(key).robot_type) not in (None, robot.name):
                logger.warning(
                    f"{key!r} is taken for the robot type {robot.name}; the policy was trained on {trained}"
                )
            self.robot_types = {**self.robot_types, key: robot.name}
            self.normalization_modes = {**self.normalization_modes, key: modes}
            self.normalization_options = {**self.normalization_options, key: robot.options()}
            if robot.action.names:
                self.action_names = {**self.action_names, key: robot.action.names}

    def normalizer(self, key: str, modality: str) -> Normalizer:
        """Return the normaliser of one statistics key's "action" or "state"."""
        of_key = self.statistics[key]
        if not isinstance(of_key, Mapping) or of_key.get(modality) is None:
            has = sorted(of_key) if isinstance(of_key, Mapping) else repr(of_key)[:80]
            raise ValueError(f"the statistics of {key!r} have no {modality!r}; they have {has}")
        robot = self.robot_of(key)
        modes, options = self.normalization_modes.get(key), self.normalization_options.get(key)
        if robot is not None and modality not in (modes or ()):
            robot.check(of_key[modality], key, modality)
            modes, options = robot.modes(of_key, key), robot.options()
        if modality not in (modes or ()):
            sharing = robots_with_key(key)
            raise ValueError(
                f"how {modality}s of {key!r} are normalised is not known"
                + (f": several robot types have this key, {', '.join(sharing)}" if len(sharing) > 1 else "")
                + ". Name the robot type that the policy was trained on with robot_type= in from_pretrained (a name or a YAML "
                f"file; hf_vla.robots.robot_names() lists them), or pass normalization_modes={{{key!r}: {{'action': …, 'state': …}}}}"
            )
        normalizer = Normalizer(of_key[modality], modes[modality], f"{modality}s of {key!r}", **(options or {}))
        if modality == "action" and self.action_dim not in (None, normalizer.dim):
            raise ValueError(
                f"the statistics of {key!r} are of {normalizer.dim} action dimensions; this policy's actions have "
                f"{self.action_dim}"
            )
        return normalizer

    def _normalize(self, values: np.ndarray, keys: list[str], modality: str) -> np.ndarray:
        normalizers = {key: self.normalizer(key, modality) for key in set(keys)}
        if len(normalizers) == 1:
            return normalizers[keys[0]].normalize(values)
        return np.stack([normalizers[key].normalize(x) for key, x in zip(keys, values, strict=True)])

    def unnormalize_actions(self, actions, unnorm_key: str | Sequence[str] | None = None, state=None) -> np.ndarray:
        """Convert normalised actions (B, T, action_dim) or (T, action_dim) to a float32 array of the same shape, robot units.

        Args:
            actions: as `predict_action` returns them.
            unnorm_key: whose statistics, one for all samples or one each; optional if there is only one.
            state: the observations' states, (B, state_dim) or (B, 1, state_dim), or one for all (1, state_dim), robot units.
                Needed if the statistics are of actions relative to the state ([`hf_vla.robots.action_modes`]): it is added back,
                so that the result is always absolute. Not read otherwise.

        Raises:
            ValueError: another shape or value, an unknown key, or a state that is needed and missing.
        """
        actions = number_array(actions, "actions")
        if actions.ndim not in (2, 3):
            raise ValueError(f"actions have shape {actions.shape}; give (B, T, action_dim) or (T, action_dim)")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinite numbers; the policy that predicted them is broken")
        if not isinstance(unnorm_key, Sequence | np.ndarray) or isinstance(unnorm_key, str):
            key = self.resolve_key(unnorm_key)
            normalizer = self.normalizer(key, "action")
            published = self.unnormalization == "published"
            actions = normalizer.unnormalize_as_published(actions) if published else normalizer.unnormalize(actions)
            mode = self.action_mode(key)
            return mode.to_absolute(actions, mode.reference(self._state_of(key, state), actions, key))
        if actions.ndim != 3:
            raise ValueError(f"one unnorm_key per sample needs actions (B, T, action_dim), not {actions.shape}")
        keys = self._keys(unnorm_key, len(actions))
        states = [None] * len(actions)
        if state is not None:
            states = number_array(state, "state")
            states = states if len(states) == len(actions) else [states] * len(actions)
        return np.stack([self.unnormalize_actions(*of_one) for of_one in zip(actions, keys, states, strict=True)])

    def relative_actions(self, actions: np.ndarray, state, unnorm_key: str | None = None) -> np.ndarray:
        """Convert absolute actions (B, T, action_dim) in robot units to those that the key's statistics are of.

        These are relative to the state, or the same.

        `state` as for `unnormalize_actions`.
        """
        key = self.resolve_key(unnorm_key)
        mode = self.action_mode(key)
        return mode.to_relative(actions, mode.reference(self._state_of(key, state), actions, key))

    def action_mode(self, key: str) -> ActionMode:
        """Return what the actions of one statistics key are relative to."""
        return ActionMode.of_statistics(self.statistics[key], key)

    def state_names(self, key: str | None) -> list[str] | None:
        """Return one name per dimension of a key's states, as the policy's data or its robot type have them, or None."""
        names = self.input_contract.of(key).state_names
        robot = self.robot_of(key) if names is None and key in self.statistics else None
        return names if robot is None else robot.state.names or None

    def _state_of(self, key: str, state) -> np.ndarray | None:
        """Return states that actions are relative to as a float32 array; None stays None."""
        if state is not None:
            state = number_array(state, "state", self.state_names(key))
            if self.action_mode(key).needs_state:
                check_finite(state, "state", self.state_names(key))
        return state


__all__ = ["RobotUnits"]
