"""Mapping a framework to StarVLA's format: its YAML, and its tensor names (StarVLA's semantics, sections 5 and 8).

Each framework's mapping is in its own folder, `modeling/FRAMEWORK/starvla_FRAMEWORK.py`; this is what all of them share.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

#: Where StarVLA's backbone is in its policies.
BACKBONE = "qwen_vl_interface.model"


def lookup(tree: Mapping, path: str, default: Any = None) -> Any:
    """Return the leaf at a dotted path, or `default` if the path does not exist; an explicit null is returned as None."""
    for name in path.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return default
        tree = tree[name]
    return tree


def first_given(*values):
    """Return the first value that is not None."""
    return next((value for value in values if value is not None), None)


class StarVLAMapping:
    """One framework's StarVLA format <-> our configuration and tensor names. A framework overrides what differs."""

    #: StarVLA's `framework.name`; of several, the first is written.
    names: ClassVar[tuple[str, ...]]
    #: StarVLA's prefixes of tensor names -> ours. The first that matches counts, in both directions.
    prefixes: ClassVar[dict[str, str]] = {}
    #: Leaves of the YAML that this framework reads beside those that all read -> (type, its description in errors)
    leaves: ClassVar[dict[str, tuple[Any, str]]] = {}
    #: Fields of the configuration that only training reads; they need not come back.
    training_fields: ClassVar[frozenset[str]] = frozenset()
    #: Fields that say how to predict; they are set again by whoever loads the policy.
    prediction_options: ClassVar[frozenset[str]] = frozenset()
    #: Fields of the configuration that `framework.action_model` holds as they are -> (StarVLA's name, its default)
    action_model_fields: ClassVar[dict[str, tuple[str, Any]]] = {}
    default_horizon: ClassVar[int] = 16
    #: Whether older checkpoints were trained with every block as cross-attention, whatever their YAML says.
    ignored_interleave: ClassVar[bool] = False

    def to_config(self, tree: dict) -> dict[str, Any]:
        """Return the fields of our configuration that StarVLA's YAML tree gives, the backbone's apart.

        Raises:
            ValueError, TypeError: the YAML asks for what is not supported, or a value is of another type.
        """
        action_model = lookup(tree, "framework.action_model") or {}
        window = action_model.get("future_action_window_size")
        horizon = first_given(
            action_model.get("action_horizon"), None if window is None else window + 1, self.default_horizon
        )
        return {
            "action_dim": int(first_given(action_model.get("action_dim"), 7)),
            "state_dim": int(lookup(action_model, "state_dim", 7) or 0),
            "action_horizon": int(horizon),
            **{
                name: type(default)(first_given(action_model.get(theirs), default))
                for name, (theirs, default) in self.action_model_fields.items()
            },
        }

    def to_yaml(self, config) -> dict[str, dict[str, Any]]:
        """Return the trees that StarVLA's trainer would have written for a configuration, by their paths.

        These are "framework", with its `action_model`, and "trainer".

        Raises:
            ValueError: StarVLA's format has no place for the configuration.
        """
        return {"framework": {"action_model": self.action_model(config)}, "trainer": {}}

    def action_model(self, config) -> dict[str, Any]:
        """Return `framework.action_model` of a configuration."""
        return {
            "action_dim": config.action_dim,
            "state_dim": config.state_dim,
            "action_horizon": config.action_horizon,
            "future_action_window_size": config.action_horizon - 1,
            "past_action_window_size": 0,
            **{theirs: getattr(config, name) for name, (theirs, _) in self.action_model_fields.items()},
        }

    def image_size(self, tree: dict) -> list[int] | None:
        """Return the size [width, height] that images are resized to, or None if they are not."""
        return lookup(tree, "datasets.vla_data.obs_image_size")

    def rename(self, name: str, to_starvla: bool = False) -> str:
        """Return a tensor's (or module's) name in our model, or in StarVLA's; a name without a known prefix stays."""
        prefixes = {f"{BACKBONE}.": "vlm.", "qwen_vl_interface.": "vlm.", **self.prefixes}
        for theirs, ours in prefixes.items():
            old, new = (ours, theirs) if to_starvla else (theirs, ours)
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def convert(self, tensors: Mapping[str, torch.Tensor], to_starvla: bool) -> dict[str, torch.Tensor]:
        """Return a checkpoint's tensors under our names, or under StarVLA's."""
        return {self.rename(name, to_starvla): tensor for name, tensor in tensors.items()}


__all__ = ["BACKBONE", "StarVLAMapping", "first_given", "lookup"]
