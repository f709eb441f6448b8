"""Training: the trainer and what it is made of; `run.train` is a whole run."""

from importlib.util import find_spec

from ..utils.extras import missing_module

for _name in ("pyarrow", "matplotlib"):  # needed when training begins and when it ends: fail now
    if find_spec(_name) is None:
        _error = ModuleNotFoundError(f"No module named {_name!r}", name=_name)
        raise ModuleNotFoundError(str(missing_module(_error, __name__, "train") or _error), name=_name)
