"""Code from outside of the package: `--import` and installed plugins, what they register, and their mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vla import plugins
from hf_vla.commands.command import command
from hf_vla.commands.parser import ArgumentParser
from hf_vla.evaluation.environments import environment_class, environment_names
from hf_vla.plugins import USER_CODE, import_user_code, load_plugins

ENVIRONMENT = """
import hf_vla
from hf_vla.evaluation import Environment

class {cls}(Environment):
    def reset(self, seed): ...
    def observation(self): ...
    def step(self, action): ...
    def render(self, size=None): ...
    def close(self): ...

hf_vla.register_environment("{name}", {cls})
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No user code before, none left behind."""
    monkeypatch.setenv(USER_CODE, "")
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    plugins.installed_plugins.cache_clear()
    yield
    plugins.installed_plugins.cache_clear()
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package with an entry point, as pip would."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(package: str, source: str, entry: str) -> Path:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hf_vla.plugins]\n{package}_plugin = {entry}\n")
        (site / f"{package}.py").write_text(source)
        plugins.installed_plugins.cache_clear()
        return site

    return install


@command
def names(argv=None):
    """A command that only says what it knows."""
    parser = ArgumentParser(prog="hf-vla names", description=f"knows {', '.join(environment_names())}")
    print(parser.parse_args(argv).__dict__["import"], *environment_names())


def failure(capsys, arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        names(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


class TestImport:
    def test_a_file_and_a_module_are_known_before_arguments_are_read(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "corridors.py").write_text(ENVIRONMENT.format(cls="Corridor", name="corridor_in_a_file"))
        (tmp_path / "mazes.py").write_text(ENVIRONMENT.format(cls="Maze", name="maze_in_a_module"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            names(["--import", "corridors.py", "--import=mazes", "--help"])
        text = capsys.readouterr().out
        assert "corridor_in_a_file" in text and "maze_in_a_module" in text
        names(["--import", str(tmp_path / "corridors.py")])  # again: it is imported once
        assert os.environ[USER_CODE].split(os.pathsep) == [str(tmp_path / "corridors.py"), "mazes"]

    def test_a_settings_file_names_them(self, tmp_path, capsys):
        (tmp_path / "halls.py").write_text(ENVIRONMENT.format(cls="Hall", name="hall"))
        settings = tmp_path / "settings.yaml"
        settings.write_text(f"import: {tmp_path / 'halls.py'}\n")
        names([str(settings)])
        assert capsys.readouterr().out.startswith(f"['{tmp_path / 'halls.py'}'] ")
        assert "hall" in environment_names()

    def test_processes_that_are_started_import_it_too(self, tmp_path):
        """Whatever they are started for: a name that is not known is looked for there."""
        file = tmp_path / "tunnels.py"
        file.write_text(ENVIRONMENT.format(cls="Tunnel", name="tunnel"))
        import_user_code(str(file))
        code = (
            "from concurrent.futures import ProcessPoolExecutor; import multiprocessing\n"
            "from hf_vla.evaluation.environments import environment_class\n"
            "if __name__ == '__main__':\n"
            "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
            "        print(pool.submit(environment_class, 'tunnel').result().__module__)\n"
        )
        (tmp_path / "main.py").write_text(code)
        done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, cwd="/")
        assert done.stdout.strip() == "tunnels", done.stderr

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' ({file}, line 1)"),
            ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero ({file}, line 2)"),
            ("def f(:\n", "invalid syntax ({file}, line 1)"),
            (
                "import hf_vla\nhf_vla.register_framework('mine', int, int, int)\n",
                "the config of 'mine' is <class 'int'>; give a subclass of hf_vla.modeling.configuration_vla.VLAConfig",
            ),
            (
                "import hf_vla\nhf_vla.register_environment('mine', int)\n",
                "int cannot be the environment 'mine': it lacks the methods close, observation",
            ),
            (
                "import hf_vla\nfrom hf_vla.modeling.configuration_vla import VLAConfig\n"
                "hf_vla.register_framework('qwen_oft', VLAConfig, int, int)\n",
                "'qwen_oft' is a framework of hf_vla; give yours a name of its own",
            ),
        ],
    )
    def test_a_file_with_a_mistake(self, source, message, tmp_path, capsys):
        file = tmp_path / "mistaken.py"
        file.write_text(source)
        error = failure(capsys, ["--import", str(file)])
        assert error.startswith(f"error: cannot import {file}: ") and message.format(file=file) in error
        assert os.environ[USER_CODE] == ""

    def test_a_name_that_is_registered_twice(self, tmp_path, capsys):
        for name in ("first_door", "second_door"):
            (tmp_path / f"{name}.py").write_text(ENVIRONMENT.format(cls="Door", name="door"))
        error = failure(capsys, [f"--import={tmp_path / 'first_door.py'}", f"--import={tmp_path / 'second_door.py'}"])
        assert (
            "'door' is registered already, as first_door.Door; register second_door.Door under another name" in error
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("nowhere.py", "nowhere.py: there is no such file"),
            (
                "no_such_module",
                "cannot import no_such_module: there is no such module; give one that Python finds from",
            ),
            ("a-b.py", "is called NAME.py, and NAME is a Python name"),
            ("json.py", "another module is called 'json'"),
            ("settings/", "there is no such file"),
        ],
    )
    def test_what_is_not_there(self, given, message, tmp_path, monkeypatch, capsys):
        for name in ("a-b.py", "json.py"):
            (tmp_path / name).write_text("")
        monkeypatch.chdir(tmp_path)
        assert message in failure(capsys, ["--import", given])


class TestInstalledPlugins:
    def test_a_module(self, install):
        install("ponds", ENVIRONMENT.format(cls="Pond", name="pond"), "ponds")
        assert "pond" in environment_names()

    def test_a_function_is_called_once_when_a_name_is_not_known(self, install):
        source = "calls = []\ndef register():\n    calls.append(1)\n" + "".join(
            f"    {line}\n" if line else "\n" for line in ENVIRONMENT.format(cls="Lake", name="lake").splitlines()
        )
        install("lakes", source, "lakes:register")
        assert environment_class("metaworld") and "lakes" not in sys.modules
        assert environment_class("lake").__module__ == "lakes"
        assert load_plugins() is False
        assert sys.modules["lakes"].calls == [1]

    @pytest.mark.parametrize(
        ("source", "entry", "message"),
        [
            ("1 / 0\n", "broken", "does not load: ZeroDivisionError: division by zero"),
            ("", "broken:register", "does not load: AttributeError: module 'broken' has no attribute 'register'"),
            ("register = 3\n", "broken:register", "does not load: TypeError: 'int' object is not callable"),
        ],
    )
    def test_one_that_does_not_load(self, install, source, entry, message, capsys):
        install("broken", source, entry)
        error = failure(capsys, [])
        assert f"the plugin 'broken_plugin' ({entry}, of the package broken) {message}" in error
        assert error.rstrip().endswith("mend it, or run pip uninstall broken")

    def test_two_that_register_one_name(self, install, capsys):
        install("brooks", ENVIRONMENT.format(cls="Water", name="water"), "brooks")
        install("rivers", ENVIRONMENT.format(cls="Water", name="water"), "rivers")
        error = failure(capsys, [])
        assert "the plugin 'rivers_plugin' (rivers, of the package rivers) does not load" in error
        assert "'water' is registered already, as brooks.Water" in error
