"""`hf-vla`: its commands, bare names of recipes and launch configurations, and that nothing heavy is loaded for its help."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.commands.launching import launch_command, split_launch_arguments
from hf_vla.commands.main import COMMANDS, main
from hf_vla.commands.packaged import LAUNCH_CONFIGS, RECIPES, find_file
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TYPES = (PolicyArguments, DataArguments, VLATrainingArguments)


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys; from hf_vla.commands.main import main; status = main(['--help']); "
        "assert not {'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules); sys.exit(status)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith(f"usage: hf-vla {name} ") and "--import" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean train? (see hf-vla --help)"),
        (["fly"], "error: unknown command 'fly'; possible: quickstart, train, eval"),
    ],
)
def test_an_unknown_command(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_figures_of_a_command_that_a_notebook_runs(monkeypatch):
    """Jupyter hands its own backend of matplotlib down, which may not be installed where the command is."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    code = (
        "from hf_vla.commands.main import main\ntry: main(['report', '--help'])\nexcept SystemExit: pass\n"
        "import matplotlib; print(matplotlib.get_backend())"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1:] == ["agg"], done.stderr


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: hf-vla COMMAND")


def test_scripts_run_the_commands():
    """Under their older names, all of them."""
    scripts = sorted(SCRIPTS.glob("*.py"))
    assert len(scripts) == 11
    for script in scripts:
        lines = [line for line in script.read_text().splitlines() if line.startswith("from hf_vla.commands.")]
        assert [
            line.removeprefix("from hf_vla.commands.").split()[0].replace("_", "-") in COMMANDS for line in lines
        ] == [True]
    done = subprocess.run([sys.executable, SCRIPTS / "run_eval.py", "--episode", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean --episodes" in done.stderr


class TestBareNames:
    def test_recipes(self):
        (policy, _, args), given = parse_dataclasses(
            TYPES, ["quickstart_oft", "--output_dir", "elsewhere", "--use_cpu"]
        )
        assert policy.framework == "qwen_oft" and args.output_dir == "elsewhere"
        assert given["framework"] == "qwen_oft"

    def test_a_base(self, tmp_path):
        mine = tmp_path / "mine.yaml"
        mine.write_text("base: quickstart\nmax_steps: 7\nuse_cpu: true\n")
        (policy, _, args), _ = parse_dataclasses(TYPES, [str(mine)])
        assert (policy.framework, args.max_steps) == ("qwen_pi_v3", 7)
        assert args.learning_rate == yaml.safe_load((RECIPES / "quickstart.yaml").read_text())["learning_rate"]

    def test_a_file_beside_wins_over_the_package(self, tmp_path, monkeypatch):
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "quickstart.yaml").write_text("framework: qwen_oft\n")
        monkeypatch.chdir(tmp_path)
        assert find_file("recipes/quickstart.yaml", RECIPES, "recipe") == Path("recipes/quickstart.yaml")

    @pytest.mark.parametrize(
        ("given", "folder", "suffix"),
        [
            ("recipes/quickstart.yaml", RECIPES, ".yaml"),
            ("configs/fsdp2.yaml", LAUNCH_CONFIGS, ".yaml"),
            ("configs/zero2.json", LAUNCH_CONFIGS, ".json"),
        ],
    )
    def test_paths_of_the_last_release(self, given, folder, suffix, tmp_path, monkeypatch, caplog):
        monkeypatch.chdir(tmp_path)
        found = find_file(given, folder, "file", suffix)
        assert found == folder / Path(given).name and found.is_file()
        assert f"there is no file {given}" in caplog.text and f"{found.stem!r}" in caplog.text

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("quikstart", "there is no recipe 'quikstart'; did you mean quickstart"),
            ("mine.yaml", "there is no recipe 'mine.yaml'; the package's are bridge_rt_1, "),
            ("recipes/mine.yaml", "there is no recipe 'recipes/mine.yaml'; the package's are"),
        ],
    )
    def test_an_unknown_recipe(self, given, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            parse_dataclasses(TYPES, [given])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and message in error

    def test_deepspeed_by_name(self, monkeypatch):
        seen = {}

        class Arguments(VLATrainingArguments):
            def __post_init__(self):
                seen["deepspeed"] = self.deepspeed

        _, given = parse_dataclasses((Arguments,), ["--deepspeed", "zero2"])
        assert seen["deepspeed"] == str(LAUNCH_CONFIGS / "zero2.json") and given["deepspeed"] == "zero2"
        with pytest.raises(FileNotFoundError, match="no DeepSpeed configuration 'zero4'; did you mean zero"):
            parse_dataclasses((Arguments,), ["--deepspeed", "zero4"])


class TestLaunching:
    def command(self, *arguments: str) -> list[str]:
        launch, rest = split_launch_arguments(arguments)
        return launch_command(launch, ["train", *rest])

    def test_the_command(self, tmp_path, monkeypatch):
        """From any folder: what the configuration names lies beside it."""
        monkeypatch.chdir(tmp_path)
        command = self.command(
            "quickstart", "--launch", "zero3", "--bf16", "true", "--num_processes", "4", "--seed", "1"
        )
        assert command[1:] == [
            "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_CONFIGS / "zero3.yaml"),
            "--num_processes", "4", "--deepspeed_config_file", str(LAUNCH_CONFIGS / "zero3.json"),
            "-m", "hf_vla", "train", "quickstart", "--bf16", "true", "--seed", "1",
        ]  # fmt: skip

    def test_a_file_of_ones_own(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("distributed_type: MULTI_GPU\n")
        command = self.command("--launch", str(file), "--num_processes", "2", "--main_process_port", "29501")
        assert command[4:9] == [str(file), "--num_processes", "2", "--main_process_port", "29501"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--launch", "fsdp3"], "no launch configuration 'fsdp3'; did you mean fsdp2"),
            (["--num_processes", "2"], "--num_processes is for accelerate's launcher: add --launch, with one of ddp"),
            (["--launch"], "expected one argument"),
            (["--launch", "{file}"], "has no distributed_type"),
        ],
    )
    def test_bad_input(self, arguments, message, tmp_path, capsys):
        file = tmp_path / "recipe.yaml"
        file.write_text("max_steps: 2\n")
        with pytest.raises(SystemExit) as ended:
            main(["train", "quickstart", *(argument.format(file=file) for argument in arguments)])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and message in error

    def test_a_recipe_does_not_launch(self, tmp_path, capsys):
        mine = tmp_path / "mine.yaml"
        mine.write_text("base: quickstart\nlaunch: fsdp2\n")
        with pytest.raises(SystemExit):
            parse_dataclasses(TYPES, [str(mine)])
        assert (
            "launch is not a setting of a recipe; give it on the command line, as --launch" in capsys.readouterr().err
        )

    def test_two_processes(self, recipe, tmp_path):
        """Of one node on the CPU, as accelerate starts them."""
        command = ["-m", "hf_vla", "train", recipe, "--launch", "ddp", "--num_processes", "2", "--max_steps", "2"]
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "policy" / "model.safetensors").is_file()
        assert done.stdout.count("policy written to") == 1
