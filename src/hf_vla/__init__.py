"""hf_vla: vision-language-action policies as first-class Hugging Face models.

Importing this package registers every framework with `AutoConfig`, `AutoModel` and `AutoProcessor`, and the pipeline
"vision-language-action"; what is heavy loads when it is used.
"""

from . import auto
from .registry import FRAMEWORKS, register_framework
from .utils.lazy import lazy_names

__version__ = "0.1.0"

_LAZY = {
    "BackboneFamily": "processing.backbone_families",
    "DatasetMixture": "data",
    "ImageAugmentation": "data",
    "LeRobotDataset": "data",
    "LeRobotWriter": "data",
    "LlavaDataset": "data",
    "VLADataCollator": "data",
    "VLMDataCollator": "data",
    "Policy": "inference.policy",
    "Prediction": "inference.prediction",
    "VisionLanguageActionPipeline": "inference.pipeline",
    "VLATrainer": "training.trainer",
    "VLATrainingArguments": "training_args.arguments",
    "register_backbone_family": "processing.backbone_families",
    "register_environment": "evaluation.environments",
}
for _type, _stem in FRAMEWORKS.items():
    _LAZY[f"{_stem}Config"] = f"modeling.{_type}.configuration_{_type}"
    _LAZY[f"{_stem}ForActionPrediction"] = f"modeling.{_type}.modeling_{_type}"
    _LAZY[f"{_stem}Processor"] = f"modeling.{_type}.processing_{_type}"

__all__ = ["__version__", "register_framework", *sorted(_LAZY)]
__getattr__, __dir__ = lazy_names(__name__, _LAZY)

auto.install()
