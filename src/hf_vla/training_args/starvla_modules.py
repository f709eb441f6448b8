"""StarVLA's module paths as regular expressions over our parameter names."""

import re

from ..checkpoints.starvla_mapping import BACKBONE
from ..registry import starvla_mapping

# transformers 4.57 lets these be reached without the inner `model`, and so do StarVLA's configurations.
_SHORTCUTS = (f"{BACKBONE}.visual", f"{BACKBONE}.language_model")


def module_pattern(path: str, model_type: str) -> str | None:
    r"""Return the anchored pattern of all parameters below a module of StarVLA's, or None if we have no such module.

    ```python
    >>> module_pattern("qwen_vl_interface", "qwen_pi_v3"), module_pattern("action_model.action_encoder", "qwen_gr00t")
    ('^vlm\\.', '^action_head\\.action_encoder\\.')

    ```

    Args:
        path: dotted, from StarVLA's policy down, as in `trainer.freeze_modules`.
        model_type: our framework.
    """
    if any(path == shortcut or path.startswith(f"{shortcut}.") for shortcut in _SHORTCUTS):
        path = path.replace(BACKBONE, f"{BACKBONE}.model", 1)
    ours = starvla_mapping(model_type).rename(f"{path}.")
    return None if ours == f"{path}." else "^" + re.escape(ours)


__all__ = ["module_pattern"]
