"""The YAML of a native run, checked before it is read; the backbone that it names."""

import re
from pathlib import Path

from ..registry import starvla_frameworks, starvla_mapping
from .starvla_mapping import lookup

#: leaves that all frameworks read -> (type, what to say it must be)
_LEAVES = {
    "framework.action_model": (dict, "a mapping"),
    "framework.action_model.diffusion_model_cfg": (dict | None, "a mapping"),
    "framework.qwenvl.base_vlm": (str | None, "a path or repository"),
    "datasets.vla_data.CoT_prompt": (str | None, "a text"),
    "datasets.vla_data.obs_image_size": (list | None, "[width, height]"),
}


def check_tree(tree, file) -> None:
    """Raise a ValueError where the YAML names no framework that is known, or a leaf that is read is of another kind."""
    known = starvla_frameworks()
    if (name := lookup(tree, "framework.name")) not in list(known):
        raise ValueError(f"{file} names the framework {name!r}; known are {', '.join(known)}")
    for path, (kind, what) in (_LEAVES | starvla_mapping(known[name]).leaves).items():
        value = lookup(tree, path, {} if kind is dict else None)
        pair = not isinstance(value, list) or (len(value) == 2 and all(isinstance(x, int) and x > 0 for x in value))
        if not isinstance(value, kind) or not pair:
            raise ValueError(f"{path} is {value!r:.80} in {file}; it must be {what}, or be left out")


def hub_name(base_vlm: str) -> str:
    """A backbone's folder or repository. Released configurations hold a path on the author's disk; its name tells the owner."""
    if Path(base_vlm).is_dir() or re.fullmatch(r"\w[\w.-]*/[\w.-]+", base_vlm):
        return base_vlm
    name = base_vlm.rstrip("/").split("/")[-1]
    return f"StarVLA/{name}" if name.endswith("-Action") else f"Qwen/{name}"


__all__ = ["check_tree", "hub_name"]
