"""The page: the policy that it shows, and a tab for each thing to do with it."""

import logging
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: no request to another host

import gradio as gr

from . import compare_tab, inside_tab, predict_tab, watch_tab
from .parts import html_part
from .policies import Policies, card, released_choices
from .worker import Worker, errors_as_messages

# Addresses that only this machine's own users can reach.
_HERE = ("127.0.0.1", "localhost", "::1")
_FONT = ("system-ui", "sans-serif")
_FONT_MONO = ("ui-monospace", "monospace")  # the machine's own: none is downloaded


def build(wanted: str | None = None, folders: bool = True, lend_token: bool = False, **options) -> gr.Blocks:
    """Build the page, with its policy loaded: `wanted`, or what `Policies.first` chooses; see `Policies` for the rest."""
    policies, worker = Policies(folders=folders, lend_token=lend_token, **options), Worker()
    first, trouble = policies.first(wanted)
    with gr.Blocks(title="hf_vla", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        model = gr.State(first)
        html_part("title", "<h1>See a robot policy think and move</h1>")
        about = html_part("model", card(policies.get(first), first, trouble))
        choices = released_choices()
        with gr.Accordion("Another model", open=False, elem_id="other-model"):
            with gr.Row(equal_height=True):
                other = gr.Textbox(
                    label="Folder or Hub repository" if folders else "Hub repository",
                    placeholder="user/policy, or untrained",
                    scale=4,
                    min_width=220,
                    elem_id="model-id",
                )
                load = gr.Button("Load", scale=1, min_width=80, elem_id="load")
            released = gr.Dropdown(
                choices,
                value=None,
                label="Released checkpoints, with the memory of their weights in bfloat16",
                elem_id="released",
            )
            released.input(lambda name: name, released, other, show_progress="hidden")
        with gr.Tab("Predict", elem_id="tab-predict"):
            inputs = predict_tab.build(policies, worker, model, first)
        with gr.Tab("Compare", elem_id="tab-compare"):
            compare_tab.build(policies, worker, model, inputs, choices)
        with gr.Tab("Watch", elem_id="tab-watch"):
            watch_tab.build(policies, worker, model, inputs.key)
        with gr.Tab("Look inside", elem_id="tab-look"):
            inside_tab.build(policies, worker, model, inputs)

        @errors_as_messages
        def on_load(client: gr.Request, name):
            policy = worker.run(client.session_hash, policies.get, name)
            return [name.strip(), card(policy, name.strip()), *predict_tab.for_policy(policy)]

        gr.on(
            [load.click, other.submit],
            on_load,
            other,
            [model, about, inputs.key, inputs.state, inputs.steps],
            concurrency_id="policy",
            concurrency_limit=1,
            show_progress_on=about,
        )

        def on_leave(client: gr.Request) -> None:
            worker.cancel(client.session_hash)

        page.unload(on_leave)
    # One piece of work at a time is the policy's; moving sliders is not.
    return page.queue(default_concurrency_limit=4, max_size=32)


def launch(
    model: str | None = None, host: str | None = None, port: int | None = None, lend_token: bool = False, **options
) -> None:
    """Show the page until it is stopped.

    If other machines can reach it, visitors may name Hub repositories only, no folders of this machine.

    Args:
        model: folder or Hub repository of the policy to start with; by default the environment variable `MODEL_ID`, else the
            quickstart's policy, else one with random weights.
        host, port: the address, by default gradio's: `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`.
        lend_token: see `Policies`.
        options: of `from_pretrained`, such as `robot_type`.
    """
    address = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    only_here = address in _HERE and "SPACE_ID" not in os.environ
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    theme = gr.themes.Default(font=_FONT, font_mono=_FONT_MONO)
    build(model, folders=only_here, lend_token=lend_token, **options).launch(
        server_name=host,
        server_port=port,
        theme=theme,
        css_paths=Path(__file__).with_name("style.css"),
        share=False,
        ssr_mode=False,
        max_file_size="32mb",
        footer_links=[],
    )
