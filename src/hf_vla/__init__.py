"""hf_vla: vision-language-action policies as first-class Hugging Face models.

Importing this package registers every framework with `AutoConfig`, `AutoModel` and `AutoProcessor`, and the pipeline
"vision-language-action"; what is heavy loads when it is used.
"""

from . import registration
from .registration import register_framework
from .utils import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _LAZY)

registration.install()
