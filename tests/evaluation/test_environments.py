"""The registry of simulators, and the choice of MuJoCo's rendering backend."""

import os
import sys
from types import SimpleNamespace

import pytest
from toy import ToyEnvironment

import hf_vla
from hf_vla.evaluation import environments, rendering
from hf_vla.evaluation.environments import canonical_task, environment_names, make_environment, task_names


def test_registry_lists_what_is_possible():
    assert "metaworld" in environment_names()
    assert len(task_names("metaworld")) == 50
    assert canonical_task("metaworld", "drawer-open-v3") == "drawer-open"


def test_unknown_environment_names_the_possible_ones():
    with pytest.raises(ValueError, match="unknown environment 'metawrld'; possible: metaworld"):
        make_environment("metawrld", "drawer-open")


def test_unknown_task_names_the_nearest_first():
    with pytest.raises(ValueError, match="unknown MetaWorld task 'drawr-open'; possible: drawer-open, ") as error:
        make_environment("metaworld", "drawr-open")
    assert all(task in str(error.value) for task in task_names("metaworld"))


@pytest.fixture
def registered(monkeypatch):
    """An empty register of a user's environments."""
    monkeypatch.setattr(environments, "_REGISTERED", {})


def test_a_registered_environment_is_made_by_name(registered):
    hf_vla.register_environment("point", ToyEnvironment)
    hf_vla.register_environment("point", ToyEnvironment)  # as a notebook's cell does that runs again
    assert "point" in environment_names() and task_names("point") == ["reach", "touch"]
    assert make_environment("point", "touch", max_steps=7).max_steps == 7
    with pytest.raises(ValueError, match="unknown environment 'pont'; possible: point, "):
        make_environment("pont", "reach")
    with pytest.raises(ValueError, match="point does not take the setting 'max_step'; possible: max_steps"):
        make_environment("point", "reach", max_step=7)


def test_a_class_that_does_not_derive_gets_the_defaults(registered):
    methods = {
        name: vars(ToyEnvironment)[name] for name in ("__init__", "reset", "step", "observation", "render", "close")
    }
    attributes = {name: value for name, value in vars(ToyEnvironment).items() if not name.startswith("_")}
    hf_vla.register_environment("point", type("Point", (), attributes | methods))
    environment = make_environment("point", "reach")
    assert environment.settings() == {} and environment.evaluation_episodes == 20
    hf_vla.register_environment("bare", type("Bare", (), methods))
    with pytest.raises(ValueError, match="'bare' .Bare. lacks the attributes instruction, action_low, action_high"):
        make_environment("bare", "reach")


def test_suites(registered):
    class Suite(ToyEnvironment):
        @classmethod
        def suites(cls):
            return {"all": cls.task_names()}

    hf_vla.register_environment("suite", Suite)
    assert environments.suite_tasks("suite", "all") == ["reach", "touch"]
    with pytest.raises(ValueError, match="unknown suite 'al'; possible: all"):
        environments.suite_tasks("suite", "al")
    with pytest.raises(ValueError, match="gymnasium has no suites; name its tasks"):
        environments.suite_tasks("gymnasium", "all")


def test_what_cannot_be_registered(registered):
    class Half(environments.Environment):
        def reset(self, seed):
            pass

    with pytest.raises(ValueError, match="Half cannot be the environment 'half': .*close, observation, render, step;"):
        hf_vla.register_environment("half", Half)
    with pytest.raises(ValueError, match="lacks the methods close, observation, render, reset, step"):
        hf_vla.register_environment("nothing", type("Nothing", (), {}))
    with pytest.raises(ValueError, match="takes a class, not <toy.ToyEnvironment"):
        hf_vla.register_environment("point", ToyEnvironment())
    with pytest.raises(ValueError, match="'metaworld' is one of hf_vla's own"):
        hf_vla.register_environment("metaworld", ToyEnvironment)
    hf_vla.register_environment("point", ToyEnvironment)
    other = type("Other", (ToyEnvironment,), {})
    with pytest.raises(ValueError, match=r"'point' is registered already, as toy\.ToyEnvironment"):
        hf_vla.register_environment("point", other)


@pytest.fixture
def machine(monkeypatch):
    """A Linux machine on which mujoco is not imported yet, with the EGL devices and libraries that a test says."""

    def make(egl=(), libraries=()):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.delitem(sys.modules, "mujoco", raising=False)
        # Set first, so that monkeypatch restores what the code under test changes.
        for name in ("MUJOCO_GL", "LP_NUM_THREADS"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.setattr(rendering, "_usable_egl_devices", lambda: set(egl))
        monkeypatch.setattr(rendering, "_can_load", lambda *names: bool(set(names) & set(libraries)))

    return make


@pytest.mark.parametrize(
    ("egl", "libraries", "backend"),
    [
        (["gpu", "software"], ["libOSMesa.so.8"], "egl"),
        (["software"], ["libOSMesa.so.8"], "osmesa"),
        ([], ["libOSMesa.so.6"], "osmesa"),
        (["software"], [], "egl"),
    ],
)
def test_backend_follows_the_machine(machine, egl, libraries, backend):
    machine(egl, libraries)
    assert rendering.select_mujoco_backend() == backend
    assert os.environ["MUJOCO_GL"] == backend


def test_without_a_backend_the_package_to_install_is_named(machine):
    machine()
    with pytest.raises(OSError, match="libosmesa6"):
        rendering.select_mujoco_backend()


def test_the_users_backend_is_kept(machine, monkeypatch):
    machine(["gpu"])
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert rendering.select_mujoco_backend() == "glfw"


def test_mujoco_that_was_imported_without_a_way_to_render(machine, monkeypatch):
    machine(["gpu"])
    context = type("GLContext", (), {"__module__": "mujoco.glfw"})
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace(GLContext=context))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # too late: mujoco reads it only at import
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(OSError, match="imported before MUJOCO_GL was set"):
        rendering.select_mujoco_backend()
    monkeypatch.setenv("DISPLAY", ":0")
    rendering.select_mujoco_backend()


def test_probing_egl_does_not_fail_on_this_machine():
    assert rendering._usable_egl_devices() <= {"gpu", "software"}
