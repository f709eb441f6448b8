"""The demo as a Space on the Hub, with the package's wheel inside, so that it needs hf_vla on no package index."""

import base64
import hashlib
import re
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version as installed
from io import BytesIO
from pathlib import Path

from packaging.requirements import Requirement

import hf_vla

from ..hub import is_repository_name

_FILES = Path(__file__).with_name("space")
#: Where a Space runs, with the Python that its card names: what the markers of requirements are evaluated for.
_PLATFORM = {
    "python_version": "3.11", "python_full_version": "3.11.0", "implementation_version": "3.11.0",
    "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
    "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64",
}  # fmt: skip
#: What the demo needs; `libero` for its simulator, which is not part of them.
EXTRAS = ("demo", "sim")


def push_space(
    repo_id: str,
    model: str | None = None,
    *,
    extras: tuple[str, ...] = EXTRAS,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload the demo as a Space, which is made if it is not there.

    Args:
        repo_id: the Space, "user/name".
        model: Hub repository of the policy that it starts with, its variable MODEL_ID; by default one with random weights.
        extras: of hf_vla, whose dependencies the Space installs.
        private: whether a Space that is made here is private.
        token: of the Hub; by default the one that is logged in.

    Returns:
        the Space's address.

    Raises:
        ValueError: `model` is not a Hub repository, which is all that a Space can load.
        OSError: the package's own files cannot be found, the Hub refuses, or it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if model is not None and not is_repository_name(model):
        raise ValueError(f"{model!r} is not a repository on the Hub, and a Space has no other: push the policy first")
    files = space_files(extras)
    api = HfApi(token=token)
    url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    old = [
        name for name in api.list_repo_files(url.repo_id, repo_type="space") if re.fullmatch(r"hf_vla-.*\.whl", name)
    ]
    operations = [CommitOperationDelete(name) for name in old if name not in files]
    operations += [CommitOperationAdd(name, content) for name, content in files.items()]
    if model is not None:
        api.add_space_variable(url.repo_id, "MODEL_ID", model)
    api.create_commit(url.repo_id, operations, commit_message="Upload the demo of hf_vla", repo_type="space")
    return str(url)


def space_files(extras: tuple[str, ...] = EXTRAS) -> dict[str, bytes]:
    """Return the Space's files by name: the app, its card and requirements, and the package as a wheel."""
    files = {path.name: path.read_bytes() for path in sorted(_FILES.iterdir()) if path.is_file()}
    card = files["README.md"].decode()
    files["README.md"] = re.sub(r"^sdk_version: .*$", f"sdk_version: {installed('gradio')}", card, flags=re.M).encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(extras)).encode()
    return files | dict([make_wheel()])


def requirements(extras: tuple[str, ...]) -> list[str]:
    """Return what the package and these extras need. Gradio is left out: a Space brings the one that its card names."""
    needed = set()
    for line in _distribution().requires or ():
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        wanted = marker is None or any(marker.evaluate(_PLATFORM | {"extra": extra}) for extra in ("", *extras))
        if wanted and requirement.name != "gradio":
            needed.add(str(requirement))
    return sorted(needed)


def make_wheel() -> tuple[str, bytes]:
    """Return the name and content of a wheel of the package as it is installed here, also from a working copy.

    The format is that of PEP 427: the package's files, METADATA, entry points, and a RECORD of all of them.
    """
    here, version = _distribution(), hf_vla.__version__
    info = f"hf_vla-{version}.dist-info"
    # PKG-INFO is that of an egg-info, as in a working copy.
    metadata = here.read_text("METADATA") or here.read_text("PKG-INFO")
    if metadata is None:
        raise OSError(
            "the metadata of hf_vla as it is installed here is incomplete: pip install -e . in its repository"
        )
    metadata = re.sub(r"^Version: .*$", f"Version: {version}", metadata, count=1, flags=re.M)
    root = Path(hf_vla.__file__).parent
    files = {
        f"hf_vla/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: hf_vla\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = (here.read_text("entry_points.txt") or "").encode()
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return f"hf_vla-{version}-py3-none-any.whl", packed.getvalue()


def _distribution():
    try:
        return distribution("hf_vla")
    except PackageNotFoundError:
        raise OSError(
            "hf_vla is imported from a folder and not installed, so its wheel can't be made: pip install -e . in its repository"
        ) from None


__all__ = ["EXTRAS", "make_wheel", "push_space", "requirements", "space_files"]
