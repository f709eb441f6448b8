"""The package's extras: what to install if a module is missing."""

import functools
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata, version

from .suggestions import did_you_mean

__all__ = ["check_extras", "extras", "installed_version", "lacking", "missing_module", "pip_install"]

#: Distributions whose modules have another name.
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "mpl_toolkits": "matplotlib"}
_REQUIREMENT = re.compile(r"^([\w.-]+)(\[[\w,-]+\])?([^;]*);.*\bextra == [\"']([\w-]+)[\"']")


def pip_install(*extras: str) -> str:
    """Return the command that installs extras."""
    return f'pip install "hf_vla[{",".join(extras)}]"'


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


def lacking(extra: str) -> list[str]:
    """Return what is not installed, or not in the right version, of an extra: "av", "mujoco <3.4,>=3.3 (there is 3.2.0)"."""
    return list(filter(None, (_lack(name, wanted) for name, wanted in extras()[extra].items())))


def check_extras(*names: str) -> None:
    """Check that extras are installed, as a script's or notebook's first line.

    Raises:
        ModuleNotFoundError: something of them is not; the message says what, and how to install it.
        ValueError: there is no extra of that name.
    """
    if not (known := extras()):  # nothing is known of a source tree that was never installed
        return
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"hf_vla has no extra {unknown[0]!r}{did_you_mean(unknown[0], known, ', '.join(known))}")
    if missing := list(dict.fromkeys(part for name in names for part in lacking(name))):
        raise ModuleNotFoundError(f"not installed: {', '.join(missing)}; run: {pip_install(*names)}")


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution that is installed, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


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


def _lack(distribution: str, wanted: str) -> str | None:
    """Say what is wrong with a distribution that an extra asks for, or None."""
    from packaging.specifiers import SpecifierSet

    found = installed_version(distribution)
    if found is None:
        return distribution
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return f"{distribution} {wanted} (there is {found})"
    return None


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
