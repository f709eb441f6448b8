"""Small pieces of the page that several tabs use."""

from collections.abc import Callable
from concurrent.futures import wait

import gradio as gr

from .worker import Worker


def html_part(name: str, value: str = "") -> gr.HTML:
    """Return an HTML element in the look of style.css, which is also what `name` is for."""
    return gr.HTML(value, elem_id=name, elem_classes="part", apply_default_css=False, padding=False, js_on_load=None)


def connect_work(
    go: gr.Button,
    stop: gr.Button,
    worker: Worker,
    status: gr.HTML,
    handler: Callable,
    inputs: list,
    outputs,
    **options,
) -> None:
    """Let `go` run the handler, one at a time of all that use the policy, and `stop` end it; `status` says that it was ended.

    The page runs a click's events in the order in which they are added here, each after the one before has ended.
    """
    go.click(None, outputs=status, js="() => ''")
    running = go.click(handler, inputs, outputs, concurrency_id="policy", concurrency_limit=1, **options)

    def on_stop(client: gr.Request) -> None:
        if over := worker.cancel(client.session_hash):
            wait([over])

    # The page itself says so, at once, however busy the server is.
    stop.click(None, outputs=status, js="""() => '<p class="note">Stopping …</p>'""")
    stop.click(None, cancels=running)  # if it still waits for another visitor's
    stop.click(on_stop, queue=False, show_progress="hidden")
    stop.click(None, outputs=status, js="""() => '<p class="note">Cancelled.</p>'""")
