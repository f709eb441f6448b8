"""The wheel holds what the package needs, and works away from the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import hf_vla

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "repository"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_every_file_of_the_package_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("hf_vla/")}
    here = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "hf_vla").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == here
    assert {"hf_vla/py.typed", "hf_vla/recipes/quickstart.yaml", "hf_vla/launch_configs/zero2.json"} <= packed


@pytest.mark.slow
def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(read["METADATA"])
    assert metadata["Version"] == hf_vla.__version__
    assert "hf-vla = hf_vla.commands.main:main" in read["entry_points.txt"]
    (transformers,) = (line for line in metadata.get_all("Requires-Dist") if line.startswith("transformers"))
    assert "<5.24" in transformers and ">=5.23" in transformers
    extras = {"all", "train", "peft", "sim", "server", "demo", "deepspeed", "quantization", "torchao", "export"}
    assert extras <= set(metadata.get_all("Provides-Extra"))


@pytest.mark.slow
def test_it_works_away_from_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import hf_vla; print(hf_vla.__file__)").strip() == str(
        tmp_path / "site" / "hf_vla" / "__init__.py"
    )
    told = run("-m", "hf_vla", "info")
    for name in ("quickstart", "zero3_offload", "libero_franka", "metaworld"):
        assert name in told
    code = "from hf_vla.data.named_mixtures import read_mixture; from hf_vla.demo.policies import RECIPE, make_untrained\n"
    code += "print(len(read_mixture('libero_all')), make_untrained(RECIPE).model.config.model_type)"
    assert run("-c", code).split() == ["4", "qwen_pi_v3"]
