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
OPTIONS = ("seed", "num_inference_steps", "previous_chunk", "inference_delay")
# What StarVLA's clients send along, and no framework here reads.
_WITHOUT_MEANING = ("do_sample", "use_ddim", "num_ddim_steps", "cfg_scale")
_PREFIX = "observation/"


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
    """Which keys of an openpi observation are cameras, in the policy's order, and which one is the state.

    `images` None: those keys that hold an image, which must then be one, or `observation/image` and `observation/wrist_image`.
    """

    images: tuple[str, ...] | None = None
    state: str = "observation/state"


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
    known = ("examples", "unnorm_key", *OPTIONS, *_WITHOUT_MEANING)
    if unknown := [name for name in payload if name not in known]:
        raise ValueError(f"unknown {unknown[0]!r} in the payload; it may have {', '.join(known)}")
    options = {name: payload[name] for name in OPTIONS if payload.get(name) is not None}
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
        ValueError: no prompt, absent images, or images whose order nobody has stated.
    """
    if not isinstance(message.get("prompt"), str):
        raise ValueError(f"an observation needs 'prompt', the instruction; it has {_names(message)}")
    images = keys.images
    if images is None:
        there = [name for name, value in message.items() if _is_image(value)]
        usual = [_PREFIX + "image", _PREFIX + "wrist_image"]
        if len(there) != 1 and set(there) != set(usual):
            raise ValueError(
                f"an observation without stated cameras may have one image, or {' and '.join(usual)}; it has "
                f"{', '.join(there) or 'none'}: start the server with --openpi-images and the cameras in the policy's order"
            )
        images = there if len(there) == 1 else usual
    if absent := [name for name in images if name not in message]:
        raise ValueError(f"the observation lacks {', '.join(absent)}; it has {_names(message)}")
    observation = {"image": [message[name] for name in images], "lang": message["prompt"]}
    if message.get(keys.state) is not None:
        observation["state"] = message[keys.state]
    return Request([observation])


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8


def _names(message: Mapping) -> str:
    return ", ".join(map(str, message)) or "nothing"


__all__ = [
    "OPTIONS",
    "OpenpiKeys",
    "Request",
    "answer_starvla",
    "is_starvla",
    "read_openpi",
    "read_starvla",
    "refuse_starvla",
]
