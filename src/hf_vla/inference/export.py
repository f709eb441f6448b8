"""A policy's prediction as one file, for ONNX Runtime or `torch.export`: processor outputs in, normalised actions out.

What is exported is the static path that `compile_for_inference` compiles, for one batch size, one layout of images and one length of
prompts. Positions, rotations and the places of image tokens are constants in it; noise is an input.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .._version import __version__
from ..modeling.compiled_sampling import CompiledSampling
from ..modeling.sampling import PreparedOptions, SamplingOptions
from ..modeling.static_backbone import BackbonePlan
from ..utils.extras import pip_install
from ..utils.files import new_folder, refuse_full_folder
from .exported import DESCRIPTION, EXAMPLE, FORMATS, ExportedModel
from .fingerprint import fingerprint
from .policy import Policy

#: Largest difference of exported actions from the policy's own, by dtype, above which the export counts as broken.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class StaticPrediction(nn.Module):
    """A policy's `sample_actions` for one layout of images and prompts, as a function of tensors.

    Args:
        model: the policy.
        plan: of the layout, for prompts of any number of tokens up to its own.
        options: what is fixed: denoising steps.
        names: of the tensors that `forward` takes, in order; "noise", if among them, is the draw.
    """

    def __init__(self, model, plan: BackbonePlan, options: PreparedOptions, names: Sequence[str]):
        super().__init__()
        self.model, self.plan, self.options, self.names = model, plan, options, tuple(names)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, tensors, strict=True))
        options = replace(self.options, noise=inputs.pop("noise", None))
        inputs.setdefault("attention_mask", None)
        return self.model.sample_actions(options, plan=self.plan, image_grid_thw=None, **inputs).float()


def export_policy(
    policy: Policy,
    folder: str | Path,
    formats: Sequence[str] = ("onnx", "pt2"),
    *,
    batch_size: int = 1,
    views: int | Sequence[tuple[int, int]] | None = None,
    instruction: str = "pick up the red block and put it on the green plate",
    num_inference_steps: int | None = None,
) -> dict:
    """Write the folder of an exported policy, and compare what it predicts with the policy.

    It holds the network (`policy.onnx`, `policy.pt2`), the processor, `export.json`, which says what the network takes, and an example
    of inputs and actions. It is written whole or not at all.

    Args:
        policy: on the CPU.
        formats: "onnx" for ONNX Runtime, "pt2" for `torch.export.load`.
        batch_size: observations per call.
        views: as for `Policy.compile_for_inference`.
        instruction: prompts may be as long as this one's, rounded up to a multiple of 16 tokens.
        num_inference_steps: denoising steps; default: the policy's.

    Returns:
        what is written to `export.json`.

    Raises:
        ValueError: the policy can't be one graph, or what was exported predicts something else.
        ImportError: the extra `export` is not installed.
        OSError: `folder` exists and is not empty.
    """
    folder = Path(folder)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"unknown formats {', '.join(unknown)}; possible: {', '.join(FORMATS)}")
    model = policy.model
    if (reason := why_not_exported(policy)) is not None:
        raise ValueError(f"{type(model).__name__} can't be exported: {reason}")
    if "onnx" in formats:
        _check_onnx(model.dtype)
    refuse_full_folder(folder)
    inputs = policy.model_inputs([policy.blank_observation(views, instruction)] * batch_size)
    network, tensors, about = static_prediction(policy, inputs, num_inference_steps)
    with torch.no_grad():
        expected = network(*tensors.values())
    with new_folder(folder) as work:
        program = torch.export.export(network, tuple(tensors.values()), strict=False)
        if "pt2" in formats:
            torch.export.save(program, work / FORMATS["pt2"])
        if "onnx" in formats:
            torch.onnx.export(
                program,
                (),
                work / FORMATS["onnx"],
                input_names=list(tensors),
                output_names=["actions"],
                external_data=True,
                verbose=False,
            )
        model.config.save_pretrained(work)
        policy.processor.save_pretrained(work)
        np.savez(work / EXAMPLE, actions=expected.numpy(), **{name: x.numpy() for name, x in tensors.items()})
        about |= {"files": {name: FORMATS[name] for name in formats}, "largest_difference": {}}
        about["fingerprint"] = fingerprint(model, policy.processor)  # whose prompts the loaded policy uses again
        (work / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for name in formats:
            found = ExportedModel(work, name).run({name: x.numpy() for name, x in tensors.items()})
            difference = float(np.abs(found - expected.numpy()).max())
            if not difference <= _TOLERANCE[model.dtype]:
                raise ValueError(f"{FORMATS[name]} predicts actions that differ by {difference:.1e} from the policy's")
            about["largest_difference"][name] = difference
        (work / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (work / "README.md").write_text(_readme(about), encoding="utf-8")
    return about


def why_not_exported(policy: Policy) -> str | None:
    """Return why a policy's prediction can't be one exported graph, or None if it can."""
    model = policy.model
    if not model.one_graph:
        return "it writes its actions token by token, in a loop whose length depends on them; serve it with hf-vla serve --compile"
    if model.device.type != "cpu":
        return f"it is on {model.device}; load it with device='cpu'"
    if policy.guiding:
        return "it is guided, by two prompts; load it with guidance=1"
    if getattr(model, "is_quantized", False):
        return "its weights are quantised; load it without quantization, and quantise what was exported"
    inputs = policy.model_inputs([policy.blank_observation()])
    return CompiledSampling().why_not(model, SamplingOptions(), dict(inputs))


def static_prediction(
    policy: Policy, inputs, num_inference_steps: int | None = None
) -> tuple[StaticPrediction, dict[str, torch.Tensor], dict]:
    """Return the network for inputs of this layout, its tensors for these inputs, by name, and what to know of them.

    Args:
        inputs: of the model, from its processor.
    """
    model, sampling = policy.model.eval(), CompiledSampling()
    shape, noise = (len(inputs["input_ids"]), model.config.action_horizon, model.config.action_dim), None
    if policy.denoises:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = SamplingOptions(noise=noise, num_inference_steps=num_inference_steps)
    options = model.prepared_options(options, len(inputs["input_ids"]))
    tensors = {name: x for name, x in sampling.arranged(model, dict(inputs)).items() if x is not None}
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    # A plan of prompts without padding serves shorter ones too: causal attention does not reach what follows them.
    plan = sampling.plan(model, tensors | {"attention_mask": torch.ones_like(mask)})
    about = {
        "hf_vla": __version__,
        "torch": torch.__version__,
        "framework": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attends_padding": model.attends_padding,
        "image_token_id": model.vlm.config.image_token_id,
        "image_places": [row.nonzero()[:, 0].tolist() for row in ids == model.vlm.config.image_token_id],
        "image_grid_thw": tensors.pop("image_grid_thw").tolist(),
        "num_inference_steps": options.num_inference_steps if policy.denoises else None,
    }
    if options.noise is not None:
        tensors["noise"] = options.noise
    about["noise"] = None if options.noise is None else ("normal" if options.noise.ndim == 3 else "uniform")
    about["inputs"] = {
        name: {
            "shape": list(x.shape),
            "dtype": str(x.dtype).removeprefix("torch."),
            "what": _what(name, policy, about),
        }
        for name, x in tensors.items()
    }
    about["outputs"] = {"actions": {"shape": list(shape), "dtype": "float32", "what": "normalised actions"}}
    fixed = replace(options, noise=None, generator=None)
    return StaticPrediction(model, plan, fixed, list(tensors)), tensors, about


def _what(name: str, policy: Policy, about: dict) -> str:
    images = policy.processor.image_processor
    known = {
        "input_ids": "the prompts' tokens, images at image_places; shorter prompts are followed by padding"
        if not about["attends_padding"]
        else "the prompts' tokens, images at image_places; all prompts have this length",
        "attention_mask": "1 at the prompts' tokens, 0 at padding",
        "pixel_values": f"patches of {images.patch_size}x{images.patch_size} pixels in the order of {type(images).__name__}, of "
        f"images of image_grid_thw patches; pixels / 255, minus {list(images.image_mean)}, divided by {list(images.image_std)}",
        "state": "the robot's state, normalised",
        "noise": "standard normal: a draw of actions"
        if about["noise"] == "normal"
        else "uniform in [0, 1): what each round of decoding draws by",
        "dino_pixel_values": "the views for DINO, normalised by ImageNet's mean and standard deviation",
    }
    return known.get(name, "as the processor gives it")


def _check_onnx(dtype: torch.dtype) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: {pip_install('export')}") from error
    if dtype == torch.bfloat16:
        raise ValueError("ONNX Runtime has no bfloat16 on CPUs; load the policy with dtype float32 or float16")


def _readme(about: dict) -> str:
    rows = "\n".join(f"| {n} | {x['shape']} | {x['dtype']} | {x['what']} |" for n, x in about["inputs"].items())
    if "onnx" in about["files"]:
        run = 'session = onnxruntime.InferenceSession("policy.onnx")\n'
        run += "inputs = {x.name: example[x.name] for x in session.get_inputs()}\n"
        run += 'actions = session.run(["actions"], inputs)[0]'
        imports = "import numpy as np\nimport onnxruntime"
    else:
        run = f"inputs = [torch.from_numpy(example[name]) for name in {list(about['inputs'])}]\n"
        run += 'actions = torch.export.load("policy.pt2").module()(*inputs).numpy()'
        imports = "import numpy as np\nimport torch"
    return f"""# {about["framework"]}, exported by hf_vla {about["hf_vla"]}

From a processor's outputs to normalised actions {about["outputs"]["actions"]["shape"]}. `export.json` says the same as this page.

| input | shape | dtype | |
|---|---|---|---|
{rows}

The example's inputs and actions are in `example.npz`:

```python
{imports}

example = np.load("example.npz")
{run}
print(np.abs(actions - example["actions"]).max())
```

From observations to actions in robot units, with hf_vla: `hf_vla.inference.exported.load_exported(FOLDER).infer(observation)`.
"""


__all__ = ["StaticPrediction", "export_policy", "static_prediction", "why_not_exported"]
