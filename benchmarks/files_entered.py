"""Count the files of this package that one has to read to follow a native load, a prediction and a training run.

    python benchmarks/files_entered.py [--list]

A file counts as entered if one of its functions is called; what runs when a module is imported does not count.
"""

import argparse
import contextlib
import inspect
import runpy
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import yaml

import hf_vla
from hf_vla import LeRobotWriter, Policy, QwenPIV3ForActionPrediction
from hf_vla.checkpoints.starvla_writer import save_repository
from hf_vla.processing.new_backbone import write_new_backbone

PACKAGE = Path(hf_vla.__file__).parent
TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "run_train.py"
VLM = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}
HEAD = {"action_hidden_size": 32, "attention_head_dim": 16, "action_horizon": 4}
OF = {name: {"q01": [-1.0] * dim, "q99": [1.0] * dim} for name, dim in (("action", 7), ("state", 8))}


@contextlib.contextmanager
def entered(files: set):
    """Collect the package's files in which functions are called, in any thread."""

    def profile(frame, event, argument):
        code = frame.f_code
        # Modules and classes are code that is run too, but it is not optimised.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(str(PACKAGE)):
            files.add(str(Path(code.co_filename).relative_to(PACKAGE)))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def write_native(folder: Path) -> None:
    (folder / "base").mkdir()
    write_new_backbone(folder / "base", VLM, ["open the drawer"], {})
    model, processor = QwenPIV3ForActionPrediction.from_vlm(
        folder / "base", random_init=True, image_size=[32, 32], statistics={"oxe_bridge": OF}, **HEAD
    )
    save_repository(model, processor, folder / "native")


def write_dataset(folder: Path) -> None:
    features = {
        "observation.images.front": {"dtype": "video", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "dataset", fps=10, features=features, robot_type="arm") as writer:
        for _ in range(6):
            writer.add_frame(
                {
                    "observation.images.front": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
                    "observation.state": rng.normal(size=2).astype(np.float32),
                    "action": rng.normal(size=2).astype(np.float32),
                }
            )
        writer.save_episode(task="open the drawer")


def write_recipe(folder: Path) -> Path:
    recipe = {
        "dataset": [str(folder / "dataset")],
        "vlm_config": VLM,
        "policy_config": HEAD,
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the files")
    arguments = parser.parse_args()
    found = {name: set() for name in ("native load, model", "native load, policy", "prediction", "training run")}
    observation = {"image": [np.zeros((32, 32, 3), np.uint8)], "lang": "open the drawer", "state": np.zeros((1, 8))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_native(folder)
        write_dataset(folder)
        recipe = write_recipe(folder)
        from transformers import AutoModel

        with entered(found["native load, model"]):
            AutoModel.from_pretrained(str(folder / "native"))
        with entered(found["native load, policy"]):
            policy = Policy.from_pretrained(str(folder / "native"))
        with entered(found["prediction"]):
            policy.infer(observation)
        sys.argv = [str(TRAIN), str(recipe)]
        with entered(found["training run"]), contextlib.suppress(SystemExit):
            runpy.run_path(str(TRAIN), run_name="__main__")
        if not (folder / "run" / "model.safetensors").exists():
            raise RuntimeError("the training run left no policy")
    for name, files in found.items():
        print(f"{name}: {len(files)} files" + ("\n  " + "\n  ".join(sorted(files)) if arguments.list else ""))


if __name__ == "__main__":
    main()
