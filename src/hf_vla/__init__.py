"""hf_vla: vision-language-action policies as first-class Hugging Face models.

Importing this package registers every framework with `AutoConfig`, `AutoModel` and `AutoProcessor`, and the pipeline
"vision-language-action"; what is heavy loads when it is used.
"""

import importlib

from . import registration
from .registration import register_framework

__version__ = "0.1.0"

_LAZY = {
    "DatasetMixture": "data",
    "ImageAugmentation": "data",
    "LeRobotDataset": "data",
    "LeRobotWriter": "data",
    "LlavaDataset": "data",
    "VLADataCollator": "data",
    "VLMDataCollator": "data",
    "Policy": "inference",
    "Prediction": "prediction",
    "VisionLanguageActionPipeline": "pipeline",
    "VLATrainer": "training_args.trainer",
    "VLATrainingArguments": "training_args.arguments",
}
for _type, _stem in registration.FRAMEWORKS.items():
    _LAZY[f"{_stem}Config"] = f"modeling.configuration_{_type}"
    _LAZY[f"{_stem}ForActionPrediction"] = f"modeling.modeling_{_type}"
    _LAZY[f"{_stem}Processor"] = f"processing.processing_{_type}"

__all__ = ["__version__", "register_framework", *sorted(_LAZY)]


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


registration.install()
