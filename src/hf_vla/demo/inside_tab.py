"""The tab "Look inside": where a policy attends in the images, and how a chunk forms from noise if it is denoised."""

from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from .parts import connect_work, html_part
from .plots import formation_plots, heat_map
from .policies import Policies
from .predict_tab import Inputs, predict, read
from .worker import Worker, errors_as_messages

_ALL_SIZE, _LARGE_SIZE = 112, 448


@dataclass(frozen=True)
class Trace:
    """What was seen of one prediction.

    Attributes:
        images: V camera images.
        attention: one array per image, (blocks, denoising steps, rows, columns); of a policy that does not denoise, of the
            backbone's layers and one step.
        chunks: (denoising steps + 1, 1, H, D), robot units; the first is the noise. None if the policy does not denoise.
        names: of the D action dimensions.
    """

    images: list[Image.Image]
    attention: list[np.ndarray]
    chunks: np.ndarray | None
    names: list[str]


def attention_view(trace: Trace, camera: int, block: int, step: int) -> str:
    """Draw one camera's heat map of one block and denoising step, all counted from 1; block 0 is the mean of all."""
    maps = trace.attention[camera - 1]
    chosen = maps[:, step - 1].mean(0) if block == 0 else maps[block - 1, step - 1]
    where = "the mean of all layers" if block == 0 else f"layer {block} of {len(maps)}"
    if trace.chunks is None:
        what = f"Where the tokens that become actions attend in {where} of the backbone."
    else:
        what = f"Where {where} of the action head attends at denoising step {step} of {maps.shape[1]}."
    return (
        f'<div class="heat">{heat_map(trace.images[camera - 1], chosen, _LARGE_SIZE)}</div><p class="legend">{what} '
        f"One patch gets {chosen.min():.2%} (dark) to {chosen.max():.2%} "
        f"(bright) of the attention, the whole image {chosen.sum():.0%}; the rest goes to other tokens.</p>"
    )


def attention_table(trace: Trace, camera: int) -> str:
    """Draw one camera's heat maps of all blocks (rows) and denoising steps (columns), on one scale."""
    maps = trace.attention[camera - 1]
    limits = float(maps.min()), float(maps.max())
    denoises = trace.chunks is not None
    head = "".join(f"<th>step {step}</th>" for step in range(1, maps.shape[1] + 1)) if denoises else "<th></th>"
    rows = []
    for number, block in enumerate(maps, 1):
        cells = "".join(
            f"<td>{heat_map(trace.images[camera - 1], weights, _ALL_SIZE, limits)}</td>" for weights in block
        )
        rows.append(f"<tr><th>layer {number}</th>{cells}</tr>")
    return (
        f"<h3>All layers{' and denoising steps' if denoises else ''}, on one scale</h3>"
        '<div class="wide"><table class="maps">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def formation_view(trace: Trace, step: int) -> str:
    """Plot the chunk at every denoising step, with step `step` (0 is the noise) highlighted; empty if there are none."""
    if trace.chunks is None:
        return ""
    return f"<h3>How the chunk forms from noise</h3>{formation_plots(trace.chunks, trace.names, step)}"


def build(policies: Policies, worker: Worker, model: gr.State, inputs: Inputs) -> None:
    """Lay out the tab and connect it; the observation is that of the tab "Predict"."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(
                "Where the policy looks: bright patches got more attention. One prediction is traced for the inputs of the tab "
                "“Predict”. If the policy denoises, it is the action head's attention to the backbone's tokens, at every "
                "denoising step; else the backbone's own, from the tokens that become actions."
            )
            with gr.Row():
                go = gr.Button("Look inside", variant="primary", elem_id="look", min_width=120)
                stop = gr.Button("Cancel", elem_id="look-cancel", min_width=80)
            status = html_part("look-status")
            block = gr.Slider(0, 1, 0, step=1, label="Layer (0: mean of all)", interactive=False, elem_id="block")
            step = gr.Slider(
                0, 1, 1, step=1, label="Denoising step (0: noise)", interactive=False, elem_id="look-step"
            )
            camera = gr.Slider(1, 2, 1, step=1, label="Camera image", visible=False, elem_id="camera")
        with gr.Column(scale=3, min_width=300):
            view = html_part("attention", '<p class="empty">Press “Look inside”: a heat map appears here.</p>')
    formation, table = html_part("formation"), html_part("maps")
    traced = gr.State()

    def work(name, values):
        policy = policies.get(name)
        request = read(policy, *values)
        request.samples = 1
        prediction = predict(policy, request, trace=True)
        return Trace(request.observation["image"], prediction.attention, prediction.chunks, prediction.action_names)

    @errors_as_messages
    def on_look(client: gr.Request, name, *values):
        trace = worker.run(client.session_hash, work, name, values)
        blocks, steps = trace.attention[0].shape[:2]
        return {
            traced: trace,
            block: gr.update(maximum=blocks, value=0, interactive=True),
            step: gr.update(maximum=steps, value=steps, interactive=trace.chunks is not None),
            camera: gr.update(maximum=max(2, len(trace.images)), value=1, visible=len(trace.images) > 1),
            view: attention_view(trace, 1, 0, steps),
            formation: formation_view(trace, steps),
            table: attention_table(trace, 1),
        }

    @errors_as_messages
    def on_choice(trace, camera, block, step):
        if trace is None:
            return gr.skip(), gr.skip()
        return attention_view(trace, camera, block, max(1, step)), formation_view(trace, step)

    @errors_as_messages
    def on_camera(trace, camera):
        return gr.skip() if trace is None else attention_table(trace, camera)

    outputs = [traced, block, step, camera, view, formation, table]
    connect_work(go, stop, worker, status, on_look, [model, *inputs.all], outputs, show_progress_on=view)
    for slider in (block, step, camera):
        slider.input(
            on_choice,
            [traced, camera, block, step],
            [view, formation],
            show_progress="hidden",
            trigger_mode="always_last",
        )
    camera.input(on_camera, [traced, camera], table, show_progress="hidden", trigger_mode="always_last")
