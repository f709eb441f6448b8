"""hf_vla: vision-language-action policies as first-class Hugging Face models.

Importing this package registers every framework with `AutoConfig`, `AutoModel` and `AutoProcessor`, and the pipeline
"vision-language-action"; what is heavy loads when it is used.
"""

from typing import TYPE_CHECKING

from . import auto
from ._version import __version__
from .registry import FRAMEWORKS, register_framework
from .utils.lazy import lazy_names

if TYPE_CHECKING:  # what type checkers and editors see; a test compares it with _LAZY
    from .data import (
        DatasetMixture as DatasetMixture,
        ImageAugmentation as ImageAugmentation,
        LeRobotDataset as LeRobotDataset,
        LeRobotWriter as LeRobotWriter,
        LlavaDataset as LlavaDataset,
        VLADataCollator as VLADataCollator,
        VLMDataCollator as VLMDataCollator,
    )
    from .evaluation.environments import register_environment as register_environment
    from .inference.pipeline import VisionLanguageActionPipeline as VisionLanguageActionPipeline
    from .inference.policy import Policy as Policy
    from .inference.prediction import Prediction as Prediction
    from .modeling.exploration import Exploration as Exploration, LearnedStd as LearnedStd
    from .modeling.qwen_adapter.configuration_qwen_adapter import QwenAdapterConfig as QwenAdapterConfig
    from .modeling.qwen_adapter.modeling_qwen_adapter import (
        QwenAdapterForActionPrediction as QwenAdapterForActionPrediction,
    )
    from .modeling.qwen_adapter.processing_qwen_adapter import QwenAdapterProcessor as QwenAdapterProcessor
    from .modeling.qwen_discrete_diffusion.configuration_qwen_discrete_diffusion import (
        QwenDiscreteDiffusionConfig as QwenDiscreteDiffusionConfig,
    )
    from .modeling.qwen_discrete_diffusion.modeling_qwen_discrete_diffusion import (
        QwenDiscreteDiffusionForActionPrediction as QwenDiscreteDiffusionForActionPrediction,
    )
    from .modeling.qwen_discrete_diffusion.processing_qwen_discrete_diffusion import (
        QwenDiscreteDiffusionProcessor as QwenDiscreteDiffusionProcessor,
    )
    from .modeling.qwen_dual.configuration_qwen_dual import QwenDualConfig as QwenDualConfig
    from .modeling.qwen_dual.modeling_qwen_dual import QwenDualForActionPrediction as QwenDualForActionPrediction
    from .modeling.qwen_dual.processing_qwen_dual import QwenDualProcessor as QwenDualProcessor
    from .modeling.qwen_fast.configuration_qwen_fast import QwenFASTConfig as QwenFASTConfig
    from .modeling.qwen_fast.modeling_qwen_fast import QwenFASTForActionPrediction as QwenFASTForActionPrediction
    from .modeling.qwen_fast.processing_qwen_fast import QwenFASTProcessor as QwenFASTProcessor
    from .modeling.qwen_gr00t.configuration_qwen_gr00t import QwenGR00TConfig as QwenGR00TConfig
    from .modeling.qwen_gr00t.modeling_qwen_gr00t import QwenGR00TForActionPrediction as QwenGR00TForActionPrediction
    from .modeling.qwen_gr00t.processing_qwen_gr00t import QwenGR00TProcessor as QwenGR00TProcessor
    from .modeling.qwen_oft.configuration_qwen_oft import QwenOFTConfig as QwenOFTConfig
    from .modeling.qwen_oft.modeling_qwen_oft import QwenOFTForActionPrediction as QwenOFTForActionPrediction
    from .modeling.qwen_oft.processing_qwen_oft import QwenOFTProcessor as QwenOFTProcessor
    from .modeling.qwen_pi.configuration_qwen_pi import QwenPIConfig as QwenPIConfig
    from .modeling.qwen_pi.modeling_qwen_pi import QwenPIForActionPrediction as QwenPIForActionPrediction
    from .modeling.qwen_pi.processing_qwen_pi import QwenPIProcessor as QwenPIProcessor
    from .modeling.qwen_pi_v3.configuration_qwen_pi_v3 import QwenPIV3Config as QwenPIV3Config
    from .modeling.qwen_pi_v3.modeling_qwen_pi_v3 import QwenPIV3ForActionPrediction as QwenPIV3ForActionPrediction
    from .modeling.qwen_pi_v3.processing_qwen_pi_v3 import QwenPIV3Processor as QwenPIV3Processor
    from .processing.backbone_families import (
        BackboneFamily as BackboneFamily,
        register_backbone_family as register_backbone_family,
    )
    from .robots.robot_types import register_robot as register_robot
    from .training.ppo_trainer import VLAPPOTrainer as VLAPPOTrainer
    from .training.trainer import VLATrainer as VLATrainer
    from .training_args.arguments import VLATrainingArguments as VLATrainingArguments
    from .training_args.ppo_arguments import PPOArguments as PPOArguments

_LAZY = {
    "BackboneFamily": "processing.backbone_families",
    "DatasetMixture": "data",
    "ImageAugmentation": "data",
    "LeRobotDataset": "data",
    "LeRobotWriter": "data",
    "LlavaDataset": "data",
    "VLADataCollator": "data",
    "VLMDataCollator": "data",
    "Exploration": "modeling.exploration",
    "LearnedStd": "modeling.exploration",
    "Policy": "inference.policy",
    "Prediction": "inference.prediction",
    "VisionLanguageActionPipeline": "inference.pipeline",
    "PPOArguments": "training_args.ppo_arguments",
    "VLAPPOTrainer": "training.ppo_trainer",
    "VLATrainer": "training.trainer",
    "VLATrainingArguments": "training_args.arguments",
    "register_backbone_family": "processing.backbone_families",
    "register_robot": "robots.robot_types",
    "register_environment": "evaluation.environments",
}
for _type, _stem in FRAMEWORKS.items():
    _LAZY[f"{_stem}Config"] = f"modeling.{_type}.configuration_{_type}"
    _LAZY[f"{_stem}ForActionPrediction"] = f"modeling.{_type}.modeling_{_type}"
    _LAZY[f"{_stem}Processor"] = f"modeling.{_type}.processing_{_type}"

__all__ = ["__version__", "register_framework", *sorted(_LAZY)]
__getattr__, __dir__ = lazy_names(__name__, _LAZY)

auto.install()
