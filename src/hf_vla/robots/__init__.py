"""Robot types as data: keys, normalisation modes, rotations, action modes. numpy and scipy only."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .action_modes import ActionMode as ActionMode
    from .normalization import Normalizer as Normalizer
    from .robot_types import (
        RobotType as RobotType,
        find_robot as find_robot,
        register_robot as register_robot,
        robot_names as robot_names,
    )

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
