"""`hf-vla info`: what is here, what is missing, and plugins that do not load."""

from importlib.metadata import version

import pytest

from hf_vla import plugins
from hf_vla.commands import info
from hf_vla.commands.main import main
from hf_vla.registry import frameworks
from hf_vla.utils.extras import extras


def told(capsys, *arguments) -> dict[str, str]:
    """What is said, by the first word of each line."""
    assert main(["info", *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    return {line.strip().partition(" ")[0].removesuffix(":"): line for line in lines}


def test_versions_names_and_extras(capsys):
    lines = told(capsys)
    assert lines["hf_vla"].startswith("hf_vla 0.") and f"transformers {version('transformers')}" in lines["torch"]
    assert lines["frameworks"] == f"frameworks: {', '.join(frameworks())}"
    assert "metaworld" in lines["environments"] and "libero_franka" in lines["robots"]
    assert "quickstart" in lines["recipes"] and lines["launch"].endswith("zero3_offload")
    assert {"train", "sim", "server", "demo"} <= set(extras()) & set(lines)


def test_what_an_extra_lacks(capsys, monkeypatch):
    monkeypatch.setattr(
        info, "extras", lambda: {"sim": {"no-such-simulator": ">=1", "numpy": "<1"}, "train": {"numpy": ""}}
    )
    lines = told(capsys)
    lacks = f'lacks no-such-simulator, numpy <1 (there is {version("numpy")}): pip install "hf_vla[sim]"'
    assert lines["sim"].endswith(lacks) and lines["train"].split() == ["train", "installed"]


def test_a_plugin_that_does_not_load_is_told_beside_the_rest(capsys, monkeypatch, tmp_path):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("arm", "no_such_package.arm", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed_plugins", lambda: (broken,))
    monkeypatch.setattr(info, "installed_plugins", lambda: (broken,))
    monkeypatch.setattr(plugins, "_loaded", set())
    lines = told(capsys)
    assert lines["plugins"] == "plugins: arm (no_such_package.arm)"
    assert (
        "the plugin 'arm' (no_such_package.arm" in lines["the"] and "No module named 'no_such_package'" in lines["the"]
    )
    assert "frameworks" in lines


def test_user_code_is_known(capsys, tmp_path):
    file = tmp_path / "ponds_for_info.py"
    file.write_text("import json\n")
    assert "frameworks" in told(capsys, "--import", str(file))
    with pytest.raises(SystemExit) as ended:
        main(["info", "--import", str(tmp_path / "nowhere.py")])
    assert ended.value.code == 2 and "there is no such file" in capsys.readouterr().err
