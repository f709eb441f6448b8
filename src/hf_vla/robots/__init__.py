"""Robot types as data: keys, normalisation modes, rotations, action modes. numpy and scipy only."""

from ..utils.lazy import lazy_names

_MODULE_OF = {
    "ActionMode": "action_modes",
    "Normalizer": "normalization",
    "RobotType": "robot_types",
    "find_robot": "robot_types",
    "register_robot": "robot_types",
    "robot_names": "robot_types",
}

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
