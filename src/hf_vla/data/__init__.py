"""Datasets that feed the processors: LeRobot folders, LLaVA JSON, weighted mixtures, the collator. Names load when first used."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CoTrainingCollator": "cotraining",
    "CoTrainingDataset": "cotraining",
    "DatasetMixture": "mixture",
    "ImageAugmentation": "augmentation",
    "LeRobotDataset": "lerobot",
    "LeRobotWriter": "lerobot_writer",
    "LlavaDataset": "llava",
    "VLADataCollator": "collator",
    "VLMDataCollator": "collator",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
