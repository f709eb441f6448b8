"""Small pieces of the page that several tabs use."""

import gradio as gr

from .worker import Worker


def html_part(name: str, value: str = "") -> gr.HTML:
    """Return an HTML element in the look of style.css, which is also what `name` is for."""
    return gr.HTML(value, elem_id=name, elem_classes="part", apply_default_css=False, padding=False, js_on_load=None)


def connect_cancel(go: gr.Button, stop: gr.Button, worker: Worker, status: gr.HTML, running) -> None:
    """Let `stop` end the session's work that `go` started, or take its event `running` out of the queue, and say so."""

    def on_stop(client: gr.Request) -> None:
        worker.cancel(client.session_hash)

    # The page itself says so, at once, however busy the server is.
    stop.click(None, outputs=status, js="""() => '<p class="note">Cancelled.</p>'""")
    stop.click(on_stop, queue=False, show_progress="hidden")
    stop.click(None, cancels=running)
    # Not by the work itself: what it still sends when it is stopped would wipe the word out.
    go.click(None, outputs=status, js="() => ''")
