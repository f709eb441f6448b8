"""`benchmarks/gpu.py --tiny` runs whole on a CPU, so that it does on a GPU as far as a CPU can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest

#: which can't be had on this machine
MISSING = ("FlashAttention", "flash_attn", "bitsandbytes", "kernels")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--tiny", "--output", str(folder)])
    assert (folder / "results.md").read_text().count("\n## ") == len(gpu.PARTS)
    return json.loads((folder / "results.json").read_text())


def test_the_script_runs_parts_by_their_limits(tmp_path):
    limits = {part: 0 for part in gpu.PARTS} | {"environment": 900}  # a busy machine is slow
    given = {"LIMITS": " ".join(f"{part}={limit}" for part, limit in limits.items()), "SECONDS_ALL": "900"}
    script = Path(gpu.__file__).with_name("gpu.sh")
    command = ["bash", str(script), "--tiny", "--output", str(tmp_path)]
    subprocess.run(command, env=os.environ | given | {"PYTHON": sys.executable}, check=True)
    found = json.loads((tmp_path / "results.json").read_text())
    assert {name: part["state"] for name, part in found.items()} == {"environment": "finished"}
    listed = script.read_text().partition("for entry in ")[2].partition(";")[0].split()
    assert {entry.partition("=")[0] for entry in listed} == set(gpu.PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(gpu.PARTS))
def test_every_part_finishes(results, part):
    assert results[part]["state"] == "finished" and results[part]["rows"]
    errors = [row["error"] for row in results[part]["rows"] if "error" in row]
    assert not [error for error in errors if not any(name in error for name in MISSING)], errors


@pytest.mark.slow
def test_the_numbers_are_those_recorded(results):
    for row in results["correctness"]["rows"]:
        differences = [float(value) for name, value in row.items() if name.endswith("from recorded")]
        assert len(differences) == 2 and max(differences) < 1e-3, row
        graphs = [float(row[name]) for name in ("actions by the static path", "in a graph") if name in row]
        assert max(graphs, default=0) < 1e-4


@pytest.mark.slow
def test_what_is_measured(results):
    latency = results["latency"]["rows"]
    whole = {(row["framework"], row["batch"], row["views"], row["how"]) for row in latency if row["stage"] == "all"}
    assert len(whole) == 3 * 4 * 3
    assert {row["stage"] for row in latency} == {"all", "vision tower", "language model", "action head"}
    assert {row["trained"] for row in results["training"]["rows"]} == {"head", "LoRA", "everything"}
    assert all(row["samples_per_s"] > 0 for row in results["training"]["rows"])
