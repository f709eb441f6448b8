"""The package's extras: what to install if a module is missing."""

import functools
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata

__all__ = ["extras", "missing_module", "pip_install"]

#: Distributions whose modules have another name.
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "mpl_toolkits": "matplotlib"}
_REQUIREMENT = re.compile(r"^([\w.-]+)(\[[\w,-]+\])?([^;]*);.*\bextra == [\"']([\w-]+)[\"']")


def pip_install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "hf_vla[{extra}]"'


@functools.cache
def extras() -> Mapping[str, Mapping[str, str]]:
    """Return the distributions that each extra adds, with the versions that it asks for, as the installed package says.

    An extra that is made of others (`all`) is not among them. Nothing is known of a source tree that was never installed.
    """
    try:
        package = metadata("hf_vla")
    except PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for requirement in package.get_all("Requires-Dist") or ():
        if (match := _REQUIREMENT.match(requirement)) and (name := _normal(match[1])) != "hf-vla":
            found.setdefault(match[4], {})[name] = match[3].strip()
    return found


def missing_module(
    error: ModuleNotFoundError, user: str | None = None, extra: str | None = None
) -> ModuleNotFoundError | None:
    """Return an error that says which extra brings the module that `error` misses, or None if no extra does.

    Args:
        error: what the import raised.
        user: what needs the module.
        extra: the extra to name if several bring the module.
    """
    module = (error.name or "").partition(".")[0]
    distribution = _normal(_DISTRIBUTIONS.get(module, module))
    bringing = [name for name, content in extras().items() if distribution in content]
    if not bringing:
        return None
    needs = f"{user} needs {distribution}, which is not installed" if user else f"{distribution} is not installed"
    return ModuleNotFoundError(f"{needs}: {pip_install(extra if extra in bringing else bringing[0])}", name=error.name)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
