"""StarVLA's module paths as regular expressions over our parameter names."""

import re

from ..checkpoints.starvla_frameworks import rename

_BACKBONE = "qwen_vl_interface.model"
# transformers 4.57 lets these be reached without the inner `model`, and so do StarVLA's configurations.
_SHORTCUTS = (f"{_BACKBONE}.visual", f"{_BACKBONE}.language_model")


def module_pattern(path: str, model_type: str) -> str | None:
    r"""The anchored pattern of all parameters below a module of StarVLA's, or None where we have no such module.

    ```python
    >>> module_pattern("qwen_vl_interface", "qwen_pi_v3"), module_pattern("action_model.action_encoder", "qwen_gr00t")
    ('^vlm\\.', '^action_head\\.action_encoder\\.')

    ```

    Args:
        path: dotted, from StarVLA's policy down, as in `trainer.freeze_modules`.
        model_type: our framework.
    """
    if path in ("qwen_vl_interface", _BACKBONE):
        return r"^vlm\."
    if path in ("dino_encoder", "dino_encoder.body"):
        return r"^dino\."
    if path == "action_model.model" and model_type == "qwen_oft":
        return r"^action_head\."
    if any(path == shortcut or path.startswith(f"{shortcut}.") for shortcut in _SHORTCUTS):
        path = path.replace(_BACKBONE, f"{_BACKBONE}.model", 1)
    ours = rename(f"{path}.")
    return None if ours == f"{path}." else "^" + re.escape(ours)


__all__ = ["module_pattern"]
