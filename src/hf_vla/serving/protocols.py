"""What clients send and expect: StarVLA's messages and openpi's. Which one a message is of, it shows itself.

StarVLA: `{"type": "infer", "request_id", "payload": {"examples": [{"image": [...], "lang", "state"}], "unnorm_key"}}`, or a flat map
without `payload`; openpi: one observation, flat keys such as `observation/image`, `observation/state`, `prompt`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.checks import is_integer

_INFER = ("infer", "predict_action")
#: What `Policy.infer` takes beside observations, under these names in a StarVLA payload.
_OPTIONS = ("seed", "num_inference_steps", "previous_chunk", "inference_delay")
# What StarVLA's clients send along, and no framework here reads.
_WITHOUT_MEANING = ("do_sample", "use_ddim", "num_ddim_steps", "cfg_scale")
_USUAL_IMAGES = ("observation/image", "observation/wrist_image")
_USUAL_STATE = "observation/state"


@dataclass(frozen=True)
class Request:
    """What is to be predicted.

    Attributes:
        observations: as `Policy.infer` takes them.
        options: for `Policy.infer`.
    """

    observations: list[Mapping]
    unnorm_key: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenpiKeys:
    """Which keys of an openpi observation are cameras, in the policy's order, and which ones, joined, are the state.

    By default those of `observation/image` and `observation/wrist_image` that are there, and `observation/state` if it is.
    """

    images: tuple[str, ...] | None = None
    state: tuple[str, ...] | None = None


def is_starvla(message: Mapping) -> bool:
    return any(name in message for name in ("type", "payload", "examples", "request_id"))


def read_starvla(message: Mapping) -> Request | None:
    """The request in a message of StarVLA's protocol; None for a ping.

    Raises:
        ValueError: an unknown type, no examples, or an unknown field.
    """
    kind = message.get("type", _INFER[0])
    if kind == "ping":
        return None
    if kind not in _INFER:
        raise ValueError(f"type is {kind!r:.80}; possible: {', '.join(_INFER)}, ping")
    payload = message.get("payload")
    if payload is None:
        payload = {name: value for name, value in message.items() if name not in ("type", "request_id", "payload")}
    if not isinstance(payload, Mapping):
        raise ValueError(f"payload is a {type(payload).__name__}, not a map with 'examples'")
    examples = payload.get("examples")
    if not isinstance(examples, Sequence) or isinstance(examples, str | bytes) or not examples:
        raise ValueError(f"'examples' must be a list of observations, at least one; the payload has {_names(payload)}")
    known = ("examples", "unnorm_key", *_OPTIONS, *_WITHOUT_MEANING)
    if unknown := [name for name in payload if name not in known]:
        raise ValueError(f"unknown {unknown[0]!r} in the payload; it may have {', '.join(known)}")
    options = {name: payload[name] for name in _OPTIONS if payload.get(name) is not None}
    for name in {*options} - {"previous_chunk"}:
        if not is_integer(options[name]):
            raise ValueError(f"{name} is {options[name]!r:.80}; give a whole number")
    unnorm_key = payload.get("unnorm_key")
    if not isinstance(unnorm_key, str | None):
        raise ValueError(f"unnorm_key is {unnorm_key!r:.80}; give the name of statistics")
    return Request(list(examples), unnorm_key, options)


def answer_starvla(message: Mapping, actions: np.ndarray | None) -> dict[str, Any]:
    """The reply to a prediction (B, T, D), or without one, to a ping."""
    reply = {"status": "ok", "ok": True, "type": "ping", "request_id": message.get("request_id")}
    return reply if actions is None else reply | {"type": "inference_result", "data": {"actions": actions}}


def refuse_starvla(message: Mapping, error: Exception) -> dict[str, Any]:
    return {
        "status": "error",
        "ok": False,
        "type": "inference_result",
        "request_id": message.get("request_id"),
        "error": {"message": str(error)},
    }


def read_openpi(message: Mapping, keys: OpenpiKeys) -> Request:
    """The request in an observation of openpi's protocol.

    Raises:
        ValueError: no prompt, absent cameras or state, or something that no key is stated for.
    """
    if not isinstance(message.get("prompt"), str):
        raise ValueError(f"an observation needs 'prompt', the instruction; it has {_names(message)}")
    images = keys.images or tuple(name for name in _USUAL_IMAGES if name in message)
    state = keys.state or tuple(name for name in (_USUAL_STATE,) if name in message)
    if not images:
        raise ValueError(
            f"an observation needs {' or '.join(_USUAL_IMAGES)}; it has {_names(message)}: start the server with "
            "--openpi-images and the cameras in the policy's order"
        )
    if absent := [name for name in (*images, *state) if name not in message]:
        raise ValueError(f"the observation lacks {', '.join(absent)}; it has {_names(message)}")
    taken = {*images, *state, "prompt"}
    if left := [name for name, value in message.items() if name not in taken and _matters(name, value)]:
        raise ValueError(
            f"the observation's {', '.join(map(str, left))} would not be used; start the server with --openpi-images and "
            "--openpi-state, or leave it out"
        )
    observation = {"image": [message[name] for name in images], "lang": message["prompt"]}
    if state:
        observation["state"] = np.concatenate([np.ravel(message[name]) for name in state])
    return Request([observation])


def _matters(name: Any, value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(name, str) and name.startswith("observation/"))


def _names(message: Mapping) -> str:
    return ", ".join(map(str, message)) or "nothing"


__all__ = [
    "OpenpiKeys",
    "Request",
    "answer_starvla",
    "is_starvla",
    "read_openpi",
    "read_starvla",
    "refuse_starvla",
]
