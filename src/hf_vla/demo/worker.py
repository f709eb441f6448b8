"""One thread for all that the policy and the simulator do, work that can be cancelled, and errors as messages.

One thread, because a model is used by one call at a time, and because OpenGL belongs to the thread that it was opened in.
"""

import functools
import html
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 600


class Cancelled(Exception):
    """The user doesn't want the result any more."""


@dataclass(frozen=True)
class _Work:
    """What a session has under way: an event that stops it, and what then closes it in the worker's thread."""

    stop: threading.Event
    close: Callable[[], None]


class Worker:
    """Runs one piece of work after the other. Each belongs to a session (one browser tab), and ends when the session is cancelled."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._under_way: dict[str, _Work] = {}

    def run(self, session: str, work: Callable, *args) -> Any:
        """Run `work(*args)` in the worker's thread.

        Raises:
            Cancelled: by `cancel(session)`, as soon as a module of the model is entered.
        """
        with self._begin(session) as stop:
            return self._pool.submit(_cancellable, stop, work, *args).result()

    def stream(self, session: str, work: Callable[..., Iterator], *args) -> Iterator:
        """Yield the items of the generator `work(*args)`, which runs in the worker's thread and is closed there, whatever happens.

        Raises:
            Cancelled: by `cancel(session)`, which closes the generator even if nobody asks for its next item.
        """
        items = work(*args)
        end = object()
        with self._begin(session, items.close) as stop:
            try:
                while (item := self._pool.submit(_cancellable, stop, next, items, end).result()) is not end:
                    yield item
            finally:
                self._pool.submit(items.close).result()

    def cancel(self, session: str) -> Future | None:
        """Stop what the session has under way.

        Returns:
            A future that is done when the work is over, or None if there is nothing under way.
        """
        work = self._under_way.pop(session, None)
        if work is None:
            return None
        work.stop.set()
        return self._pool.submit(work.close)  # the one thread does so after what it is in the midst of

    @contextmanager
    def _begin(self, session: str, close: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
        self.cancel(session)  # nobody waits for a session's earlier work any more
        work = self._under_way[session] = _Work(threading.Event(), close)
        try:
            yield work.stop
        finally:
            if self._under_way.get(session) is work:
                del self._under_way[session]


def _cancellable(stop: threading.Event, work: Callable, *args) -> Any:
    def check(module, inputs) -> None:
        if stop.is_set():
            raise Cancelled

    check(None, None)
    # For every module: a long prediction is left between two layers, whatever the framework. This thread alone runs models.
    hook = register_module_forward_pre_hook(check)
    try:
        return work(*args)
    finally:
        hook.remove()


def errors_as_messages(handler: Callable) -> Callable:
    """Decorate a gradio handler, so that its errors reach the user as one message instead of a stack trace, and the app goes on."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            with closing(handler(*args, **kwargs)) as items:
                try:
                    yield from items
                except Exception as error:
                    raise as_message(error) from None

    else:

        @functools.wraps(handler)
        def wrapped(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                raise as_message(error) from None

    return wrapped


def as_message(error: Exception) -> gr.Error:
    """Return a message: what the user can mend (`ValueError`, `OSError`, `ImportError`) in its own words; others are logged."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, Cancelled):
        return gr.Error("The work was stopped.", title="Cancelled", print_exception=False)
    if isinstance(error, ValueError | OSError | ImportError):
        logger.debug("traceback", exc_info=error)
        text = " ".join(str(error).split())
        if len(text) > _LONGEST_MESSAGE:
            text = text[:_LONGEST_MESSAGE] + " …"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError):
        text = "This needs more memory than there is. Try fewer samples, fewer or smaller images, or a smaller model."
    else:
        logger.error("a handler failed", exc_info=error)
        text = "This did not work, and it is the app's fault, not yours; its log has the details."
    return gr.Error(html.escape(text), title="Please check", print_exception=False, duration=15)
