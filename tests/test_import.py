"""`import hf_vla` is light, and registers with the Auto classes whatever is imported next, each class once."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_vla

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


@pytest.mark.parametrize(
    "package", ["hf_vla", "hf_vla.data", "hf_vla.evaluation", "hf_vla.inference", "hf_vla.robots", "hf_vla.serving"]
)
def test_type_checkers_see_what_is_loaded_when_it_is_used(package):
    """The imports under TYPE_CHECKING are the lazy names, from modules that have them."""
    module = importlib.import_module(package)
    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(
        node for node in source.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname: f"{package}.{node.module}" for node in block.body for alias in node.names}
    assert set(seen) == set(module.__all__) - {"__version__", "register_framework"}
    for name, where in seen.items():
        assert getattr(importlib.import_module(where), name) is getattr(module, name)
    assert (Path(hf_vla.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("missing", "statement", "message"),
    [
        (
            "pyarrow",
            "hf_vla.VLATrainer",
            'hf_vla.VLATrainer needs pyarrow, which is not installed: pip install "hf_vla[train]"',
        ),
        (
            "pyarrow",
            "import hf_vla.training.run",
            'needs pyarrow, which is not installed: pip install "hf_vla[train]"',
        ),
        ("matplotlib", "hf_vla.VLATrainer", 'needs matplotlib, which is not installed: pip install "hf_vla[train]"'),
        ("pyarrow", "hf_vla.LeRobotDataset", 'needs pyarrow, which is not installed: pip install "hf_vla[train]"'),
        ("msgpack", "import hf_vla.serving", 'needs msgpack, which is not installed: pip install "hf_vla[server]"'),
        ("torch", "hf_vla.Policy", "ModuleNotFoundError: import of torch halted"),
    ],
)
def test_a_missing_extra_is_named(missing, statement, message):
    code = f"import sys; sys.modules[{missing!r}] = None; import hf_vla; {statement}"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and message in failed.stderr.splitlines()[-1]
