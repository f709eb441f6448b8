"""The tab "Predict": one observation in, action chunks out. "Look inside" reads its inputs."""

import base64
import html
import json
from dataclasses import dataclass, fields

import gradio as gr
import numpy as np

from ..inference.policy import Policy
from .observation import MAX_SEED, make_observation, read_count
from .parts import connect_work, html_part
from .plots import chunk_plots, path_plots, position_dimensions
from .policies import EXAMPLES, HERE, Policies, denoising_steps, state_dim, statistics_keys
from .worker import Worker, errors_as_messages

_MAX_SAMPLES, _MAX_STEPS = 16, 50
_POSITIONS, _DISPLACEMENTS = "positions", "displacements"


@dataclass
class Inputs:
    """The tab's input components, in the order in which `read` takes their values."""

    images: gr.Gallery
    instruction: gr.Textbox
    state: gr.Textbox
    key: gr.Dropdown
    seed: gr.Number
    samples: gr.Slider
    steps: gr.Slider

    @property
    def all(self) -> list:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass
class Request:
    """The values of the inputs, checked; one sample and no `steps` if the framework doesn't denoise."""

    observation: dict
    notes: list[str]
    key: str
    seed: int
    samples: int
    steps: int | None


def read(policy: Policy, images, instruction, state, key, seed, samples, steps) -> Request:
    """Return the inputs' values as a request; a ValueError says what is wrong with them."""
    key = policy.processor.resolve_key(key or None)
    observation, notes = make_observation(images, instruction, state, state_dim(policy, key))
    return Request(
        observation,
        notes,
        key,
        read_count(seed, "The seed", 0, MAX_SEED),
        read_count(samples, "The number of samples", 1, _MAX_SAMPLES) if policy.denoises else 1,
        read_count(steps, "The number of denoising steps", 1, _MAX_STEPS) if policy.denoises else None,
    )


def predict(policy: Policy, request: Request, trace: bool = False):
    """Call `Policy.predict` as the request says."""
    return Policy(policy.model, policy.processor, request.key).predict(
        request.observation,
        num_samples=request.samples,
        num_inference_steps=request.steps,
        seed=request.seed,
        trace=trace,
    )


def as_json(name: str, policy: Policy, request: Request, prediction) -> str:
    """Return all that is needed to get these actions again, and the actions, (samples, horizon, dimensions) in robot units."""
    state = request.observation.get("state")
    content = {
        "model": name,
        "framework": policy.model.config.model_type,
        "unnorm_key": request.key,
        "instruction": request.observation["lang"],
        "image_sizes": [list(image.size) for image in request.observation["image"]],
        "state": None if state is None else np.ravel(state).tolist(),
        "seed": request.seed,
        "num_samples": request.samples,
        "num_inference_steps": request.steps,
        "prompt": prediction.prompt,
        "action_names": prediction.action_names,
        "actions": prediction.actions.tolist(),
        "seconds": prediction.seconds,
    }
    return json.dumps(content, indent=1)


def build(policies: Policies, worker: Worker, model: gr.State, first: str) -> Inputs:
    """Lay out the tab and connect it; `model` holds the name of the session's policy, at first `first`."""
    gr.Markdown(
        "What the policy would do next: from these inputs, a chunk of the next actions, one plot per dimension."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            inputs = _build_inputs(policies.get(first))
            with gr.Row():
                go = gr.Button("Predict", variant="primary", elem_id="predict", min_width=120)
                stop = gr.Button("Cancel", elem_id="predict-cancel", min_width=80)
        with gr.Column(scale=3, min_width=300):
            status = html_part("predict-status")
            plots = html_part("predict-plots", '<p class="empty">Press “Predict”: the action chunk appears here.</p>')
            meaning = gr.Radio(
                [_DISPLACEMENTS, _POSITIONS],
                label="x, y, z of an action are",
                info="Their names don't tell. Displacements are summed up.",
                visible=False,
                elem_id="meaning",
            )
            path = html_part("predict-path")
            details = html_part("predict-details")
    drawn = gr.State()

    def work(name, values):
        policy = policies.get(name)
        request = read(policy, *values)
        prediction = predict(policy, request)
        return request, prediction, as_json(name, policy, request, prediction)

    @errors_as_messages
    def on_predict(client: gr.Request, name, *values):
        request, prediction, content = worker.run(client.session_hash, work, name, values)
        names = prediction.action_names
        found = position_dimensions(names)
        displacements = found is None or found[1]
        return {
            plots: chunk_plots(prediction.actions, names),
            meaning: gr.update(value=_DISPLACEMENTS if displacements else _POSITIONS, visible=not displacements),
            path: path_plots(prediction.actions, names, displacements),
            details: _details(request, prediction, content),
            drawn: (prediction.actions, names),
        }

    @errors_as_messages
    def on_meaning(chunk, chosen):
        return path_plots(*chunk, chosen == _DISPLACEMENTS) if chunk else gr.skip()

    outputs = [plots, meaning, path, details, drawn]
    connect_work(go, stop, worker, status, on_predict, [model, *inputs.all], outputs, show_progress_on=plots)
    meaning.input(on_meaning, [drawn, meaning], path, show_progress="hidden")
    return inputs


def for_policy(policy: Policy) -> list:
    """Return updates of statistics key, state and denoising steps for another policy."""
    keys, steps = statistics_keys(policy), denoising_steps(policy)
    size = state_dim(policy, keys[0])
    return [
        gr.update(choices=keys, value=keys[0]),
        gr.update(info=_state_info(size, policy, keys[0])),
        gr.update(value=steps or 1, interactive=steps is not None),
    ]


def _build_inputs(policy: Policy) -> Inputs:
    keys, steps = statistics_keys(policy), denoising_steps(policy)
    images = gr.Gallery(
        _pictures(EXAMPLES[0]),
        label="Camera images",
        sources=["upload", "webcam"],
        file_types=["image"],
        type="filepath",
        interactive=True,
        columns=3,
        fit_columns=False,
        height=190,
        object_fit="contain",
        buttons=[],
        elem_id="images",
    )
    instruction = gr.Textbox(
        EXAMPLES[0]["instruction"], label="Instruction", lines=1, max_lines=4, elem_id="instruction"
    )
    state = gr.Textbox(
        EXAMPLES[0]["state"],
        label="State of the robot",
        info=_state_info(state_dim(policy, keys[0]), policy, keys[0]),
        elem_id="state",
    )
    gr.Examples(
        [[_pictures(example), example["instruction"], example["state"]] for example in EXAMPLES],
        [images, instruction, state],
        label="Examples",
        visible_columns=[0],
        elem_id="examples",
    )
    with gr.Row():
        key = gr.Dropdown(keys, value=keys[0], label="Statistics key", min_width=200, elem_id="key")
        seed = gr.Number(0, label="Seed", precision=0, min_width=120, elem_id="seed")
    with gr.Row():
        samples = gr.Slider(1, _MAX_SAMPLES, 8, step=1, label="Samples", min_width=200, elem_id="samples")
        number = gr.Slider(
            1,
            _MAX_STEPS,
            steps or 1,
            step=1,
            label="Denoising steps",
            interactive=steps is not None,
            min_width=200,
            elem_id="steps",
        )
    return Inputs(images, instruction, state, key, seed, samples, number)


def _state_info(size: int | None, policy: Policy, key: str) -> str:
    if size is None:
        return "This policy takes none."
    needed = Policy(policy.model, policy.processor, key).input_contract.uses_state
    return f"{size} numbers in robot units{'' if needed else ', or empty for none'}."


def _pictures(example: dict) -> list[str]:
    return [str(HERE / "examples" / name) for name in example["images"]]


def _details(request: Request, prediction, content: str) -> str:
    """Return notes, time of each stage, the prompt and the download as HTML."""
    notes = "".join(f'<p class="note">{html.escape(note)}.</p>' for note in request.notes)
    data = base64.b64encode(content.encode()).decode()
    return (
        f"{notes}<h3>Time of each stage</h3>{timing_bars(prediction.seconds)}"
        f'<h3>The prompt, as the model saw it</h3><pre class="prompt">{html.escape(prediction.prompt)}</pre>'
        # Inside the page, so that no file is left on the server.
        f'<a class="download" download="action_chunk.json" href="data:application/json;base64,{data}">'
        "Download the chunk (JSON)</a>"
    )


def timing_bars(seconds: dict[str, float]) -> str:
    """Return stages and their seconds as a table with bars; the model's parts, if timed, in place of the model."""
    if "backbone" in seconds:
        seconds = {stage: value for stage, value in seconds.items() if stage != "model"}
    longest = max(seconds.values(), default=0) or 1
    rows = [
        f"<tr><th>{html.escape(stage)}</th><td class='bar'><div style='width:{100 * value / longest:.1f}%'></div></td>"
        f"<td>{1000 * value:,.1f} ms</td></tr>"
        for stage, value in seconds.items()
    ]
    return f'<table class="timing">{"".join(rows)}</table>'
