"""The tab "Watch": the policy drives a simulator, shown while it happens."""

import html
from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from ..evaluation.environments import FIRST_EVALUATION_SEED, task_names
from ..inference.policy import Policy
from .episodes import SIMULATOR, Frame, drive, first_seed, simulators
from .observation import MAX_SEED, read_count
from .parts import connect_work, html_part
from .plots import image_tag
from .policies import EXAMPLES, Policies, title
from .worker import Worker, errors_as_messages

_STEP_LIMIT, _MAX_STEPS = 250, 500
_PAST, _STILLS, _STILL_SIZE = 8, 4, 96


@dataclass(frozen=True)
class PastEpisode:
    """What the strip shows of an episode."""

    task: str
    seed: int
    policy: str
    outcome: str
    success: bool
    stills: list[Image.Image]


def panel(frame: Frame, task: str, seed: int, outcome: str = "") -> str:
    """Return one frame with step, instruction, action and, at the end, the outcome over it."""
    result = ""
    if outcome:
        result = f'<p class="outcome {"solved" if frame.success else "failed"}">{html.escape(outcome)}</p>'
    progress = 100 * frame.step / frame.max_steps
    return (
        f'<div class="watch">{image_tag(frame.image, f"{task}, seed {seed}")}'
        f'<p class="instruction">“{html.escape(frame.instruction)}”</p>'
        f'<p class="step">step {frame.step} of {frame.max_steps}</p>'
        f'<div class="actions">{action_bars(frame)}</div>{result}'
        f'<p class="progress" style="width:{progress:.1f}%"></p></div>'
    )


def action_bars(frame: Frame) -> str:
    """Draw each dimension's value between its limits, as a bar from the middle."""
    values = np.zeros_like(frame.low) if frame.action is None else frame.action
    rows = []
    for name, value, low, high in zip(frame.action_names, values, frame.low, frame.high, strict=True):
        share = 100 * (value - low) / max(high - low, 1e-9)
        left, width = min(share, 50.0), abs(share - 50)
        rows.append(
            f'<tr><th>{html.escape(name)}</th><td class="bar"><div style="left:{left:.1f}%;width:{width:.1f}%"></div></td>'
            f"<td>{value:+.2f}</td></tr>"
        )
    return f'<table class="signed">{"".join(rows)}</table>'


def strip(past: list[PastEpisode]) -> str:
    """Return the last episodes, newest first, each as a row of stills."""
    if not past:
        return '<p class="empty">Past episodes are kept here.</p>'
    cards = [
        f'<div class="episode"><div class="stills">{"".join(image_tag(s, "still", quality=75) for s in one.stills)}</div>'
        f'<p class="{"solved" if one.success else "failed"}">{html.escape(one.outcome)}</p>'
        f"<p>{html.escape(one.task)}, seed {one.seed}</p><p class='policy'>{html.escape(title(one.policy))}</p></div>"
        for one in reversed(past)
    ]
    return f'<h3>Past episodes</h3><div class="strip">{"".join(cards)}</div>'


def _outcome(frame: Frame) -> str:
    return f"solved after {frame.step} steps" if frame.success else f"not solved in {frame.step} steps"


def _stills(images: list[Image.Image]) -> list[Image.Image]:
    chosen = np.linspace(0, len(images) - 1, min(_STILLS, len(images))).round().astype(int)
    return [images[index].resize((_STILL_SIZE, _STILL_SIZE)) for index in chosen]


def build(policies: Policies, worker: Worker, model: gr.State, key: gr.Dropdown) -> None:
    """Lay out the tab and connect it; `key` is the statistics key of the tab "Predict"."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            gr.Markdown("The policy drives the robot in a simulator: it looks, acts five steps, and looks again.")
            names = simulators()
            simulator = gr.Dropdown(
                names, value=SIMULATOR, label="Simulator", visible=len(names) > 1, elem_id="simulator"
            )
            task = gr.Dropdown(watchable_tasks(), value=EXAMPLES[0]["task"], label="Task", elem_id="task")
            with gr.Row():
                seed = gr.Number(
                    FIRST_EVALUATION_SEED,
                    label="Seed",
                    precision=0,
                    min_width=200,
                    elem_id="watch-seed",
                )
                limit = gr.Slider(
                    10, _MAX_STEPS, _STEP_LIMIT, step=10, label="Step limit", min_width=200, elem_id="limit"
                )
            with gr.Row():
                go = gr.Button("Watch", variant="primary", elem_id="watch", min_width=120)
                stop = gr.Button("Cancel", elem_id="watch-cancel", min_width=80)
            about_libero = " LIBERO's seeds are the numbers of its official episodes." if "libero" in names else ""
            gr.Markdown(
                "The frames show step, instruction and the last action in robot units. Objects are placed by the seed; the "
                f"quickstart's demonstrations used MetaWorld's seeds from 0, so that nothing from {FIRST_EVALUATION_SEED:,} on "
                f"was ever seen in training.{about_libero}"
            )
        with gr.Column(scale=3, min_width=300):
            screen = html_part("screen", '<p class="empty">Press “Watch”: the policy drives the simulator here.</p>')
            status = html_part("watch-status")
    past_strip = html_part("strip", strip([]))
    past = gr.State([])

    def work(name, robot, simulator, task, seed, limit):
        policy = policies.get(name)
        key = policy.processor.resolve_key(robot or None)
        yield from drive(Policy(policy.model, policy.processor, key), task, seed, limit, simulator)

    @errors_as_messages
    def on_simulator(chosen):
        tasks = watchable_tasks(chosen)
        return gr.update(choices=tasks, value=next(iter(tasks), None)), first_seed(chosen)

    simulator.input(on_simulator, simulator, [task, seed], show_progress="hidden")

    @errors_as_messages
    def on_watch(client: gr.Request, name, robot, simulator, task, seed, limit, before):
        seed = read_count(seed, "The seed", 0, MAX_SEED)
        limit = read_count(limit, "The step limit", 10, _MAX_STEPS)
        images = []
        for frame in worker.stream(client.session_hash, work, name, robot, simulator, task, seed, limit):
            images.append(frame.image)
            if not frame.done:
                yield {screen: panel(frame, task, seed)}
        episode = PastEpisode(task, seed, name, _outcome(frame), frame.success, _stills(images))
        after = [*before, episode][-_PAST:]
        yield {screen: panel(frame, task, seed, _outcome(frame)), past_strip: strip(after), past: after}

    connect_work(
        go,
        stop,
        worker,
        status,
        on_watch,
        [model, key, simulator, task, seed, limit, past],
        [screen, past_strip, past],
        show_progress="hidden",
        scroll_to_output=True,
    )


def watchable_tasks(simulator: str = SIMULATOR) -> list[str]:
    """Return the simulator's tasks, the examples' first; only these if it is not installed, which is told on use."""
    first = [example["task"] for example in EXAMPLES] if simulator == SIMULATOR else []
    try:
        names = task_names(simulator)
    except (ImportError, OSError):
        names = []
    return first + [name for name in names if name not in first]
