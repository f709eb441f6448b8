"""The helper behind all scripts: flags, YAML, YAML overridden by flags, errors in one line."""

import argparse

import pytest
from torch.utils.data import DataLoader

from hf_vla.commands.parser import ArgumentParser, one_line_errors


@pytest.fixture
def parser():
    parser = ArgumentParser(description="A script.\n\n    run it like this", prog="script")
    parser.add_argument("--episodes", type=int, required=True, help="how many")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="step size")
    parser.add_argument("--task", nargs="+", action="extend", help="which")
    parser.add_argument("--flip", action="store_true", help="mirror")
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True, help="control")
    parser.add_argument("--mode", choices=("a", "b"), default="a", help="one of two")
    return parser


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def failure(capsys, call, *args):
    with pytest.raises(SystemExit) as stopped:
        call(*args)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_flags_alone(parser):
    arguments = parser.parse_args(["--episodes", "3", "--task", "x", "y", "--no-baseline"])
    assert (arguments.episodes, arguments.task, arguments.baseline, arguments.flip) == (3, ["x", "y"], False, False)
    assert arguments.learning_rate == 1e-3 and arguments.config is None


def test_yaml_gives_what_flags_do_not(parser, recipe):
    path = recipe("episodes: 7\nlearning-rate: 0.5\ntask: [x, y]\nflip: true\nbaseline: false\nmode: null\n")
    arguments = parser.parse_args([path])
    assert (arguments.episodes, arguments.learning_rate, arguments.task) == (7, 0.5, ["x", "y"])
    assert (arguments.flip, arguments.baseline, arguments.mode) == (True, False, "a")


def test_flags_win_over_yaml(parser, recipe):
    path = recipe("episodes: 7\ntask: [x, y]\nbaseline: false\nmode: b\nlearning_rate: -0.5\n")
    arguments = parser.parse_args([path, "--episodes", "1", "--task", "z", "--baseline"])
    assert (arguments.episodes, arguments.task, arguments.baseline) == (1, ["z"], True)
    assert (arguments.mode, arguments.learning_rate) == ("b", -0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("episode: 7", "unknown key 'episode'; did you mean episodes?"),
        ("episodes: many", "invalid int value: 'many'"),
        ("episodes: 7\nmode: c", "invalid choice: 'c'"),
        ("episodes: 7\nflip: maybe", "possible: true, false"),
        ("episodes: 7\nlearning-rate: [1, 2]", "possible: one value"),
        ("episodes: 7\nmode: {a: 1}", "invalid choice"),
        ("- 7", "must map flag names to values"),
        ("episodes: [", "is not valid YAML"),
        ("mode: a", "required: --episodes"),
    ],
)
def test_mistakes_in_yaml(parser, recipe, capsys, text, expected):
    assert expected in failure(capsys, parser.parse_args, [recipe(text)])


def test_mistakes_in_flags(parser, capsys):
    assert "required: --episodes" in failure(capsys, parser.parse_args, [])
    assert "did you mean --episodes" in failure(capsys, parser.parse_args, ["--episode", "1"])
    assert "nowhere.yaml" in failure(capsys, parser.parse_args, ["nowhere.yaml", "--episodes", "1"])


def test_help_shows_defaults_and_keeps_line_breaks(parser, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "\n    run it like this" in text and "(default: 0.001)" in text and "None" not in text


def test_errors_end_in_one_line(capsys):
    def script():
        with one_line_errors():
            raise OSError("no such\nfile")

    assert failure(capsys, script) == "error: no such file\n"


class Broken:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise OSError(f"/data/{index}.mp4: it is damaged; download it again") from error


def test_errors_of_workers_come_without_their_traceback(capsys):
    def script():
        with one_line_errors():
            next(iter(DataLoader(Broken(), num_workers=1)))

    assert failure(capsys, script) == "error: /data/0.mp4: it is damaged; download it again\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0
