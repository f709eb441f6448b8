"""A policy server for tests, in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hf_vla.serving.server import PolicyServer


@contextmanager
def served(policy) -> Iterator[str]:
    """The address of a server of this policy."""
    loop, stopped, addresses, up = asyncio.new_event_loop(), asyncio.Event(), [], threading.Event()

    async def serve():
        async with PolicyServer(policy, "tiny").listen("127.0.0.1", 0) as listening:
            addresses.append(f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
            up.set()
            await stopped.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert up.wait(30)
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
