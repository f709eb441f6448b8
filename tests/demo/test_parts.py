"""The demo's parts without a browser: cancelling, the simulator's end, messages, limits, names of dimensions."""

import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from toy import IdlePolicy, ToyEnvironment

from hf_vla.demo import app, episodes, policies as policies_module
from hf_vla.demo.compare_tab import comparison, values_for
from hf_vla.demo.observation import MAX_PIXELS, MAX_SIDE, read_images
from hf_vla.demo.plots import position_dimensions
from hf_vla.demo.policies import UNTRAINED, Policies, make_untrained, released_choices
from hf_vla.demo.worker import Cancelled, Worker, errors_as_messages


def test_a_cancelled_prediction_ends_between_two_layers():
    worker, entered, goes_on = Worker(), threading.Event(), threading.Event()

    def work():
        entered.set()
        goes_on.wait(10)
        torch.nn.Identity()(torch.zeros(1))
        raise AssertionError("a layer was entered after the cancelling")

    def cancel():
        entered.wait(10)
        worker.cancel("another visitor")
        worker.cancel("visitor")
        goes_on.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        worker.run("visitor", work)
    thread.join()
    assert worker.run("visitor", torch.nn.Identity(), "goes on") == "goes on"


@pytest.mark.parametrize("how", ["cancelled", "abandoned", "left", "finished"])
def test_the_simulator_is_closed_where_it_was_opened(monkeypatch, how):
    threads = []

    class Simulator(ToyEnvironment):
        fps = 80  # of which every second one is shown

        def reset(self, seed):
            threads.append(threading.get_ident())
            return super().reset(seed)

        def close(self):
            threads.append(threading.get_ident())

    monkeypatch.setattr(episodes, "make_environment", lambda name, task, **settings: Simulator(task, **settings))
    worker = Worker()
    frames = worker.stream("visitor", episodes.drive, IdlePolicy(), "reach", 0, 7)
    assert next(frames).step == 0
    if how == "finished":
        shown = list(frames)
        assert [frame.step for frame in shown] == [2, 4, 6, 7] and shown[-1].done and not shown[-1].success
    elif how == "left":
        frames.close()
    elif how == "abandoned":  # nobody asks for a frame any more
        worker.cancel("visitor").result(10)
    else:
        worker.cancel("visitor")
        with pytest.raises(Cancelled):
            next(frames)
    assert len(threads) == 2 and threads[0] == threads[1] != threading.get_ident()
    assert worker.cancel("visitor") is None  # there is nothing under way


def test_only_errors_that_a_visitor_can_mend_are_shown(caplog):
    @errors_as_messages
    def handler(error):
        raise error

    @errors_as_messages
    def streaming(error):
        yield "first"
        raise error

    with pytest.raises(gr.Error) as shown:
        handler(ValueError("give\n<b>four</b> numbers"))
    assert shown.value.message == "give &lt;b&gt;four&lt;/b&gt; numbers" and not shown.value.print_exception
    with pytest.raises(gr.Error) as shown:
        list(streaming(KeyError("secret")))
    assert "secret" not in shown.value.message and "KeyError: 'secret'" in caplog.text


def test_sizes_of_images(tmp_path):
    upright = Image.new("RGB", (60, 30))
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned
    upright.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (MAX_SIDE, 20)).save(tmp_path / "wide.png")
    pictures, notes = read_images([(tmp_path / "turned.jpg", None), tmp_path / "wide.png"])
    assert [(p.mode, p.size) for p in pictures] == [("RGB", (30, 60)), ("RGB", (MAX_SIDE, 20))] and notes == []
    # Its header tells more pixels than Pillow itself would open.
    header = (tmp_path / "wide.png").read_bytes()
    bomb = header[:16] + (MAX_PIXELS // 16).to_bytes(4, "big") * 2 + header[24:]
    import zlib

    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match="at most 4096×4096 are read"):
        read_images([tmp_path / "bomb.png"])
    with pytest.raises(ValueError, match="These are 9 images; at most 8 fit"):
        read_images([tmp_path / "wide.png"] * 9)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dx", "dy", "dz", "gripper"], ([0, 1, 2], True)),
        (["gripper", "delta_x", "delta_y", "delta_z"], ([1, 2, 3], True)),
        (["x", "y", "z", "roll"], ([0, 1, 2], False)),
        (["action.x", "action.y", "action.z"], ([0, 1, 2], False)),
        (["x", "y", "yaw"], None),
        (["joint 1", "joint 2"], None),
    ],
)
def test_which_dimensions_are_positions(names, expected):
    assert position_dimensions(names) == expected


def test_visitors_name_repositories_only(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models["oft"], tmp_path / "user" / "policy")
    opened = []
    open_checkpoint = policies_module.open_checkpoint
    monkeypatch.setattr(
        policies_module, "open_checkpoint", lambda name, **hub: opened.append((name, hub)) or open_checkpoint(name)
    )
    policies = Policies(folders=False)
    assert policies.first("user/policy") == ("user/policy", "")  # its owner's
    assert opened == [("user/policy", {})]
    shutil.copytree(models["oft"], tmp_path / "user" / "other")
    for name in (
        str(models["two_robots"]),
        "user/other",
        "./user/other",
        "../x",
        "~/policy",
        "/etc/passwd",
        "x" * 500,
    ):
        with pytest.raises(ValueError, match="is not the name of a repository on the Hub"):
            policies.get(name)
    assert len(opened) == 1
    for lend_token, hub in ((False, {"token": False}), (True, {})):
        with pytest.raises(OSError, match="no Hub repository of that name"):
            Policies(folders=False, lend_token=lend_token).get("somebody/secret")
        assert opened[-1] == ("somebody/secret", hub)


@pytest.mark.parametrize(
    ("host", "environment", "folders"),
    [
        (None, {}, True),
        ("127.0.0.1", {}, True),
        ("0.0.0.0", {}, False),
        (None, {"GRADIO_SERVER_NAME": "0.0.0.0"}, False),
        (None, {"SPACE_ID": "user/space"}, False),
    ],
)
def test_folders_are_for_those_at_the_machine(monkeypatch, host, environment, folders):
    given = {}

    def build(model, **options):
        given.update(options)
        raise KeyboardInterrupt

    for name in ("GRADIO_SERVER_NAME", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "build", build)
    with pytest.raises(KeyboardInterrupt):
        app.launch("policy", host)
    assert given == {"folders": folders, "lend_token": False}


@pytest.mark.parametrize("kind", ["adapter", "native"])
def test_a_repository_does_not_name_folders_of_the_host(models, monkeypatch, kind):
    class Opened:
        name, is_adapter, is_native = "somebody/policy", kind == "adapter", kind == "native"
        base_vlm = str(models["oft"])

        def base(self):
            return str(models["oft"])

    monkeypatch.setattr(policies_module, "open_checkpoint", lambda name, **hub: Opened())
    with pytest.raises(ValueError, match="needs a model that it does not name as a repository"):
        Policies(folders=False).get("somebody/policy")


def test_few_policies_are_kept(models):
    policies = Policies(capacity=2)
    first = policies.get(UNTRAINED)
    policies.get(str(models["oft"]))
    assert policies.get(UNTRAINED) is first
    policies.get(str(models["two_robots"]))
    assert policies.get(UNTRAINED) is first
    assert len(policies._loaded) == 2


def test_released_checkpoints_are_those_of_the_documentation():
    """Each with its framework and robot type, and the memory of its weights."""
    rows = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text()
    choices = released_choices()
    assert len(choices) >= 20
    for shown, name in choices:
        (row,) = (line for line in rows.splitlines() if line.startswith(f'| `"{name}"'))
        framework, backbone = re.search(r": (\S+) on (\S+),", shown).groups()
        assert f"{framework}" in row.split("|")[2] and backbone in row.split("|")[2] and shown.endswith(" GiB")


def test_policies_of_other_actions_are_not_compared():
    given = [SimpleNamespace(actions=np.zeros((1, 4, n)), action_names=list("abcd")[:n], seconds={}) for n in (2, 4)]
    with pytest.raises(ValueError, match="have 2 and 4 dimensions"):
        comparison(given, ["one", "other"])


def test_what_the_other_policy_takes_instead_is_said():
    policy = make_untrained()
    (own,) = policy.processor.statistics
    values = [[], "open the drawer", "1,2,3,4", "another_robot", 0, 1, 4]
    taken, differences = values_for(policy, values)
    assert taken == [*values[:3], own, *values[4:]]
    assert differences == [f"it has no statistics of another_robot, and uses those of {own}"]
    assert values_for(policy, [*values[:3], own, *values[4:]])[1] == []

    policy.processor.statistics = {own: {"action": policy.processor.statistics[own]["action"]}}
    taken, differences = values_for(policy, [*values[:3], own, *values[4:]])
    assert taken[2] == "" and differences == ["it takes no state, and was given none"]


def test_libero_is_offered_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(episodes, "registered_environments", lambda: ["mine"])
    for module, offered in ((None, ["metaworld", "mine"]), (object(), ["metaworld", "libero", "mine"])):
        monkeypatch.setattr(episodes, "find_spec", lambda name, module=module: module)
        assert episodes.simulators() == offered
    assert episodes.first_seed("metaworld") == 10_000
