"""Datasets that feed the processors: LeRobot folders, LLaVA JSON, weighted mixtures, the collator. Names load when first used."""

from ..utils.lazy import lazy_names

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
