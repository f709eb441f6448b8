"""A StarVLA configuration that records which keys are read; references and numbers are resolved as in OmegaConf."""

import re
from typing import Any

from ..checkpoints.starvla_mapping import lookup

# YAML 1.1 reads 1e-05, without a dot, as text; OmegaConf reads it as a number.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Tree(dict):
    """A configuration that remembers the dotted paths of the leaves that were read."""

    def __init__(self, content: dict, path: str = "", read: set[str] | None = None) -> None:
        self.path, self.read = path, set() if read is None else read
        below = {k: Tree(v, f"{path}{k}.", self.read) if isinstance(v, dict) else v for k, v in content.items()}
        super().__init__(below)

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not isinstance(value, Tree):
            self.read.add(self.path + name)
        return value

    def get(self, name, default=None):
        return self[name] if name in self else default

    def leaves(self) -> dict[str, Any]:
        """Return all values that are not mappings, and all empty mappings, by dotted path."""
        found: dict[str, Any] = {}
        for name, value in self.items():
            found |= value.leaves() if isinstance(value, Tree) and value else {self.path + name: value}
        return found


def resolve(content: Any, root: dict | None = None, depth: int = 0) -> Any:
    """Replace OmegaConf's references `${a.b}` by their targets, and numbers that YAML reads as text by numbers."""
    root = content if root is None else root
    if depth > 20:
        raise ValueError("the configuration's references ${…} go round in a circle")
    if isinstance(content, dict):
        return {str(name): resolve(item, root, depth) for name, item in content.items()}
    if isinstance(content, list):
        return [resolve(item, root, depth) for item in content]
    if not isinstance(content, str):
        return content
    if _NUMBER.fullmatch(content):
        return float(content)
    if match := re.fullmatch(r"\$\{([\w.]+)\}", content):
        missing = object()
        found = lookup(root, match[1], missing)
        if found is missing:
            raise ValueError(f"the configuration refers to {match[1]}, which it does not have")
        return resolve(found, root, depth + 1)
    return content


__all__ = ["Tree", "resolve"]
