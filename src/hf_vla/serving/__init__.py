"""A policy behind a WebSocket, for StarVLA's clients, openpi's, and ours. Names load when first used."""

from importlib import import_module
from typing import Any

try:
    import msgpack  # noqa: F401
    import websockets  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}; the policy server and its client need: pip install 'hf_vla[server]'") from error

_MODULE_OF = {"PolicyClient": "client", "PolicyServer": "server"}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
