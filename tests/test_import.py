"""`import hf_vla` is light, and registers with the Auto classes whatever is imported next, each class once."""

import subprocess
import sys

import pytest

CHECK = """
import hf_vla, sys
heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
assert not heavy, f"import hf_vla loads {heavy}"
{first}
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from hf_vla.registry import FRAMEWORKS, class_of
for model_type in FRAMEWORKS:
    config = class_of(model_type, "config")
    assert CONFIG_MAPPING[model_type] is config
    assert MODEL_MAPPING[config] is class_of(model_type, "model")
    assert PROCESSOR_MAPPING[config] is class_of(model_type, "processor")
import hf_vla.modeling.flow_matching, hf_vla.modeling.action_head
assert hf_vla.modeling.action_head.flow_matching is hf_vla.modeling.flow_matching
assert hf_vla.modeling.flow_matching.__spec__.origin
"""


# Each takes a process of its own; a quick run makes do with the two most common ones.
MODEL = "from hf_vla.modeling.qwen_pi_v3.modeling_qwen_pi_v3 import QwenPIV3ForActionPrediction"
SAME = "assert QwenPIV3ForActionPrediction is hf_vla.QwenPIV3ForActionPrediction"
FIRST = ["from transformers import AutoProcessor", f"{MODEL}\n{SAME}"]
FIRST_SLOW = [
    f"from transformers import AutoConfig; {MODEL}",
    "from transformers import Trainer, PreTrainedModel",
    "from hf_vla.modeling.qwen_fast.processing_qwen_fast import QwenFASTProcessor",
    "import hf_vla.checkpoints.starvla",
    "from transformers.modeling_layers import GradientCheckpointingLayer",
]


@pytest.mark.parametrize("first", [*FIRST, *(pytest.param(first, marks=pytest.mark.slow) for first in FIRST_SLOW)])
def test_registration_whatever_is_imported_first(first):
    script = CHECK.replace("{first}", first)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
