"""What a script or notebook is told if an extra is not installed."""

from importlib.metadata import version

import pytest

from hf_vla.utils import extras
from hf_vla.utils.extras import check_extras


def test_one_line_says_what_to_install(monkeypatch):
    known = {"sim": {"no-such-simulator": ">=1", "numpy": "<1"}, "train": {"numpy": ">=1", "no-such-simulator": ""}}
    monkeypatch.setattr(extras, "extras", lambda: known | {"server": {"numpy": ""}})
    check_extras("server")
    with pytest.raises(ModuleNotFoundError) as missing:
        check_extras("server", "sim", "train")
    assert str(missing.value) == (
        f"not installed: no-such-simulator, numpy <1 (there is {version('numpy')}); "
        'run: pip install "hf_vla[server,sim,train]"'
    )
    with pytest.raises(ValueError, match="hf_vla has no extra 'serve'; did you mean server"):
        check_extras("serve")


def test_an_uninstalled_source_tree_is_not_checked(monkeypatch):
    monkeypatch.setattr(extras, "extras", dict)
    check_extras("train")
