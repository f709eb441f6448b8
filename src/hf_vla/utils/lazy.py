"""Names of a package that are imported when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, module_of: Mapping[str, str], extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, for names that are imported when they are first used (PEP 562).

    Args:
        package: the package's `__name__`.
        module_of: by name, which of the package's modules has it.
        extra: the extra of hf_vla that these names need, to be named first if a module is not installed.
    """

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(module_of)}")
        try:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        except ModuleNotFoundError as error:
            from .extras import missing_module

            if (helpful := missing_module(error, f"{package}.{name}", extra)) is None:
                raise
            raise helpful from error

    return get, lambda: sorted({*vars(sys.modules[package]), *module_of})
