"""The tab "Compare": two policies on one observation, on the same axes. The inputs are those of the tab "Predict"."""

import html
from collections.abc import Sequence

import gradio as gr
import numpy as np

from ..inference.policy import Policy
from .parts import connect_work, html_part
from .plots import comparison_plots
from .policies import Policies, state_dim, statistics_keys, title
from .predict_tab import Inputs, predict, read
from .worker import Worker, errors_as_messages


def values_for(policy: Policy, values: list) -> tuple[list, list[str]]:
    """Return the inputs' values as this policy can take them, and what differs from those that were given."""
    images, instruction, state, key, *rest = values
    differences = []
    if key and key not in policy.processor.statistics:
        given, key = key, statistics_keys(policy)[0]
        differences.append(f"it has no statistics of {given}, and uses those of {key}")
    if (state or "").strip() and state_dim(policy, key or statistics_keys(policy)[0]) is None:
        state = ""
        differences.append("it takes no state, and was given none")
    return [images, instruction, state, key, *rest], differences


def comparison(predictions: list, labels: list[str], notes: Sequence[str] = ()) -> str:
    """Return the plots of both chunks, and a table of what differs; `notes` come first.

    Raises:
        ValueError: the policies' actions are of different kinds.
    """
    first, second = predictions
    names = first.action_names
    if first.actions.shape[2] != second.actions.shape[2]:
        sizes = " and ".join(str(prediction.actions.shape[2]) for prediction in predictions)
        raise ValueError(f"The policies' actions have {sizes} dimensions, so that they can't be compared.")
    notes = [*notes]
    if first.action_names != second.action_names:
        others = ", ".join(second.action_names)
        notes.append(f"The other policy names its dimensions {others}; they are compared in their order.")
    told = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    steps = min(first.actions.shape[1], second.actions.shape[1])
    means = [prediction.actions.mean(axis=0)[:steps] for prediction in predictions]
    distance = np.abs(means[0] - means[1]).mean(axis=0)
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{value:.4g}</td></tr>"
        for name, value in zip(names, distance, strict=True)
    )
    times = "".join(
        f"<tr><th>{html.escape(label)}</th><td>{1000 * sum(p.seconds[s] for s in ('processor', 'model', 'unnormalize')):,.0f} ms</td></tr>"
        for label, p in zip(labels, predictions, strict=True)
    )
    return (
        f"{told}{comparison_plots([p.actions for p in predictions], labels, names)}"
        f'<h3>Mean distance over {steps} steps, robot units</h3><table class="timing">{rows}</table>'
        f'<h3>Time</h3><table class="timing">{times}</table>'
    )


def build(policies: Policies, worker: Worker, model: gr.State, inputs: Inputs, choices: list[tuple[str, str]]) -> None:
    """Lay out the tab and connect it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(
                "Two policies, one observation: that of the tab “Predict”. Blue is the policy above, orange the one chosen here."
            )
            other = gr.Dropdown(
                choices,
                value=None,
                label="The other policy",
                info="Choose a released checkpoint, or type a name as for “Another model”.",
                allow_custom_value=True,
                elem_id="compare-model",
            )
            with gr.Row():
                go = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
                stop = gr.Button("Cancel", elem_id="compare-cancel", min_width=80)
        with gr.Column(scale=3, min_width=300):
            status = html_part("compare-status")
            view = html_part("comparison", '<p class="empty">Press “Compare”: both chunks appear here.</p>')

    def work(names, values):
        predictions, notes = [], []
        for name in names:  # one after the other: they need not fit into memory together
            policy = policies.get(name)
            try:
                own_values, differences = values_for(policy, values)
                request = read(policy, *own_values)
            except ValueError as error:
                raise ValueError(f"{title(name)}: {error}") from None
            predictions.append(predict(policy, request))
            notes += request.notes + [f"{title(name)}: {difference}." for difference in differences]
        return predictions, [*dict.fromkeys(notes)]

    @errors_as_messages
    def on_compare(client: gr.Request, name, other, *values):
        names = [name, (other or "").strip()]
        predictions, notes = worker.run(client.session_hash, work, names, list(values))
        return comparison(predictions, [title(one) for one in names], notes)

    connect_work(go, stop, worker, status, on_compare, [model, other, *inputs.all], view, show_progress_on=view)
