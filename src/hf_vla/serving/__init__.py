"""A policy behind a WebSocket, for StarVLA's clients, openpi's, and ours. Names load when first used."""

from ..utils.lazy import lazy_names

try:
    import msgpack  # noqa: F401
    import websockets  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}; the policy server and its client need: pip install 'hf_vla[server]'") from error

_MODULE_OF = {"PolicyClient": "client", "PolicyServer": "server"}

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
