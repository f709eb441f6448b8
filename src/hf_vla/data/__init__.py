"""Datasets that feed the processors: LeRobot folders, LLaVA JSON, weighted mixtures, the collator. Names load when first used."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .augmentation import ImageAugmentation as ImageAugmentation
    from .co_training import CoTrainingCollator as CoTrainingCollator, CoTrainingDataset as CoTrainingDataset
    from .collator import VLADataCollator as VLADataCollator, VLMDataCollator as VLMDataCollator
    from .lerobot import LeRobotDataset as LeRobotDataset
    from .lerobot_writer import LeRobotWriter as LeRobotWriter
    from .llava import LlavaDataset as LlavaDataset
    from .mixture import DatasetMixture as DatasetMixture

_MODULE_OF = {
    "CoTrainingCollator": "co_training",
    "CoTrainingDataset": "co_training",
    "DatasetMixture": "mixture",
    "ImageAugmentation": "augmentation",
    "LeRobotDataset": "lerobot",
    "LeRobotWriter": "lerobot_writer",
    "LlavaDataset": "llava",
    "VLADataCollator": "collator",
    "VLMDataCollator": "collator",
}

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
