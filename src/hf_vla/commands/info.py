"""Tell what is here: versions, devices, extras, and the names that other commands take; or what a policy is.

    hf-vla info
    hf-vla info --import my_arm.py
    hf-vla info StarVLA/Qwen3-VL-OFT-LIBERO-4in1
    hf-vla info outputs/quickstart/policy
    hf-vla info outputs/quickstart/policy --precisions bfloat16 int8 --dataset outputs/quickstart/demonstrations

Of a policy, a folder or Hub repository in any format, it tells framework, robot types, cameras, state, prompt, attention and images,
from its small files: no weights are loaded or downloaded. With --precisions they are: the policy is loaded in float32 and in each precision,
and it tells how far its normalised actions are from float32's (largest and median difference), the time of a prediction and the size of
the weights, on random images or on frames of a --dataset.

Without one: extras that lack something come with the line that installs them; plugins that do not load come with the reason. Put its output
into bug reports.
"""

import os
import platform
from collections.abc import Iterator, Sequence

from .._version import __version__
from ..plugins import import_user_code, installed_plugins, load_plugins
from ..utils.extras import extras, installed_version, lacking, pip_install
from .dataset_arguments import parse_with_positional
from .packaged import LAUNCH_CONFIGS, RECIPES, names
from .parser import ArgumentParser, one_line_errors

_LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "huggingface-hub", "numpy")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla info", description=__doc__)
    parser.add_argument("--policy", metavar="POLICY", help="folder or Hub repository; also as the first argument")
    parser.add_argument(
        "--robot-type",
        help="robot type that the policy was trained on, by name or as a YAML file, if it does not tell it",
    )
    parser.add_argument(
        "--base-vlm",
        help="repository or folder of the backbone's config, tokenizer and image processor, of StarVLA's policies",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        help="measure the policy in these: bfloat16, float16, int8, int4, fp8; loads weights",
    )
    parser.add_argument("--dataset", help="LeRobot folder or Hub repository whose frames --precisions looks at")
    parser.add_argument("--unnorm-key", help="the policy's statistics key, for --precisions, if it has several")
    parser.add_argument("--device", help="device for --precisions; default: a GPU if there is one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    with one_line_errors():  # not `command`: a plugin that does not load is to be told, and the rest too
        arguments = parse_with_positional(make_parser(), argv, "--policy")
        _check(arguments)
        failed: list[ImportError] = []
        load_plugins(failed.append)
        for name in getattr(arguments, "import") or ():
            import_user_code(name)
        if arguments.policy is not None:
            from .policy_info import describe_policy

            lines = describe_policy(arguments.policy, arguments.robot_type, arguments.base_vlm)
        else:
            lines = describe(failed)
        for line in lines:
            print(line)
        if arguments.precisions:
            print()
            for line in describe_precisions(arguments):
                print(line, flush=True)


def _check(arguments) -> None:
    if arguments.precisions:
        if arguments.policy is None:
            raise ValueError("--precisions is about a policy: name its folder or repository")
    elif given := [name for name in ("dataset", "unnorm_key", "device") if getattr(arguments, name) is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: for measuring a policy in lower precision; add --precisions, or leave it out")


def describe(failed: Sequence[ImportError] = ()) -> Iterator[str]:
    """Yield the lines, given what `load_plugins` could not load."""
    yield f"hf_vla {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(f"{library} {installed_version(library) or 'missing'}" for library in _LIBRARIES)
    yield from _devices()
    yield ""
    yield from _extras()
    yield ""
    from ..evaluation.environments import environment_names
    from ..registry import frameworks
    from ..robots.robot_types import robot_names

    yield _listed("frameworks", frameworks())
    yield _listed("environments", environment_names())
    yield _listed("robots", robot_names())
    yield _listed("recipes", names(RECIPES))
    yield _listed("launch configurations", names(LAUNCH_CONFIGS))
    yield _listed("plugins", [f"{plugin.name} ({plugin.value})" for plugin in installed_plugins()])
    for error in failed:
        yield f"  {error}"


def describe_precisions(arguments) -> Iterator[str]:
    """Yield a table: one line per precision, as soon as it is measured."""
    from ..inference.precision import measure_precisions

    options = {name: getattr(arguments, name) for name in ("robot_type", "base_vlm", "unnorm_key", "device")}
    options = {name: value for name, value in options.items() if value is not None}
    observations = None if arguments.dataset is None else _frames(arguments.dataset)
    yield f"{'precision':<10} {'weights':>12} {'prediction':>12} {'largest and median difference of actions from float32':>55}"
    for m in measure_precisions(arguments.policy, arguments.precisions, observations=observations, **options):
        size, speed = f"{m.weight_bytes / 2**20:.0f} MiB", f"{1e3 * m.seconds:.1f} ms"
        yield f"{m.name:<10} {size:>12} {speed:>12} {f'{m.largest:.1e}, {m.typical:.1e}':>55}"


def _frames(dataset: str, number: int = 8) -> list[dict]:
    """Frames of a dataset, evenly spread."""
    from ..data import LeRobotDataset

    frames = LeRobotDataset(dataset, action_horizon=1)
    items = (frames[index * len(frames) // number] for index in range(number))
    return [{name: item[name] for name in ("image", "lang", "state") if name in item} for item in items]


def _devices() -> Iterator[str]:
    import torch

    yield f"CPU: {os.cpu_count()} cores"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}"
    if torch.accelerator.is_available() and not torch.cuda.is_available():
        yield f"{torch.accelerator.current_accelerator().type}: {torch.accelerator.device_count()} devices"


def _extras() -> Iterator[str]:
    if not extras():
        yield "extras: unknown, as hf_vla was not installed by pip"
        return
    yield "extras:"
    width = max(map(len, extras()))
    for extra in extras():
        missing = lacking(extra)
        state = f"lacks {', '.join(missing)}: {pip_install(extra)}" if missing else "installed"
        yield f"  {extra:{width}}  {state}"


def _listed(what: str, items: Sequence[str]) -> str:
    return f"{what}: {', '.join(items) or 'none'}"
