"""The sections of a model card, each made from the files in a policy's folder.

A section's function takes the folder and returns Markdown, or None if the folder has nothing for it.
"""

import ast
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from urllib.parse import quote

from ..hub import is_repository_name
from ..registry import FRAMEWORKS, class_of
from .markdown import code, fenced, plain, table

SUMMARY = "success_summary.csv"
#: The folder of an evaluation of the policy that reinforcement learning started from, which is not the policy in the folder.
BEFORE = "evaluation_before"
_COLUMNS = {"env", "task", "control", "successes", "episodes", "success_rate", "wilson_low", "wilson_high"}
_NUMBERS = {"successes": int, "episodes": int, "success_rate": float, "wilson_low": float, "wilson_high": float}
_USAGE = """import hf_vla

policy = hf_vla.Policy.from_pretrained({name}{key})
policy.reset(seed=0)
observation = {{"image": [front_view], "lang": "{instruction}"{state}}}  # one image per camera, PIL or array
actions = policy.infer(observation)  # float32 array ({horizon}, {dim}), robot units"""


def read_json(file: Path) -> dict:
    """Return the JSON object in `file`; empty if there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content


def policy_config(folder: Path) -> dict:
    """Return the policy's configuration in the folder; empty if there is none, or another model's."""
    config = read_json(folder / "config.json")
    return config if "vlm_config" in config and "action_horizon" in config else {}


def figure(model_type: str) -> str:
    """Return a framework in one line: its name and the way from backbone to actions, from its module's docstring."""
    if model_type in FRAMEWORKS:  # read, not imported: a card needs no torch
        source = Path(__file__).parents[1] / "modeling" / model_type / f"modeling_{model_type}.py"
        return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))).splitlines()[0]
    try:
        module = sys.modules[class_of(model_type, "model").__module__]
    except KeyError:
        return model_type
    return (module.__doc__ or model_type).strip().splitlines()[0]


def architecture(folder: Path) -> str | None:
    config = policy_config(folder)
    if not config:
        return None
    vlm = config["vlm_config"]
    text = vlm.get("text_config", vlm)
    name = config.get("vlm_name_or_path")
    name = name if not name or is_repository_name(name) else Path(name).name
    lora = read_json(folder / "adapter_config.json")
    facts = {
        "framework": code(config["model_type"]),
        "adapter": f"LoRA of rank {plain(lora.get('r'))}, to be loaded with its base {code(lora.get('base_model_name_or_path'))}"
        if lora
        else None,
        "backbone": f"{f'{plain(name)}, ' if name else ''}{code(vlm['model_type'])}, "
        f"{plain(text.get('num_hidden_layers'))} layers of width {plain(text.get('hidden_size'))}",
        "action chunk": plain(f"{config['action_horizon']} steps of {config['action_dim']} numbers"),
        "denoising steps": plain(config.get("num_inference_steps") or "") or None,
        "attention head": plain(config.get("attention_head_dim") or "") or None,
        "hidden states": code(config.get("hidden_states_convention")),
    }
    return "\n\n".join(
        part
        for part in (f"## Architecture\n\n{figure(config['model_type'])}", _facts(facts), _parameters(folder))
        if part
    )


def _parameters(folder: Path) -> str | None:
    from safetensors import safe_open

    counts, dtypes = Counter(), Counter()
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                numbers = prod(part.get_shape())
                counts[name.split(".")[0]] += numbers
                dtypes[part.get_dtype()] += numbers
    if not counts:
        return None
    rows = [[code(name), f"{count:,}"] for name, count in counts.most_common()]
    rows.append(["all", f"{counts.total():,}"])
    return f"{table(['module', 'parameters'], rows)}\n\nStored as {', '.join(dtype for dtype, _ in dtypes.most_common())}."


def data(folder: Path) -> str | None:
    processor = read_json(folder / "processor_config.json")
    if "statistics" not in processor:
        return None
    rows = []
    for key, statistics in sorted(processor["statistics"].items()):
        names = (processor.get("action_names") or {}).get(key)
        modes = (processor.get("normalization_modes") or {}).get(key) or {}
        rows.append(
            [
                code(key),
                plain(", ".join(names)) if names else _dimensions(statistics.get("action")),
                _dimensions(statistics.get("state")),
                plain(_modes(modes.get("action"))) + _relative(statistics),
                _number(statistics.get("num_trajectories")),
                _number(statistics.get("num_transitions")),
            ]
        )
    columns = ["statistics key (`unnorm_key`)", "actions", "state dimensions", "normalisation", "episodes", "frames"]
    facts = {
        "images": f"resized to {' x '.join(map(str, processor['image_size']))}"
        if processor.get("image_size")
        else None,
        "prompt template": code(processor["prompt_template"]) if processor.get("prompt_template") else None,
    }
    keys = table(columns, rows) if rows else "The processor holds no statistics: it takes and gives normalised values."
    return "\n\n".join(part for part in ("## Data", keys, _facts(facts)) if part)


def results(folder: Path) -> str | None:
    rows = summary_rows(folder)
    if not rows:
        return None
    rates = table(
        ["simulator", "task", "policy", "solved", "95 % interval"],
        [
            [
                plain(row["env"]),
                plain(row["task"]),
                "this one" if row["control"] == "none" else plain(row["control"]),
                plain(f"{row['successes']} of {row['episodes']}"),
                f"{float(row['wilson_low']):.2f} to {float(row['wilson_high']):.2f}",
            ]
            for row in rows
        ],
    )
    controls = {
        "blind": "blind: its images replaced by a constant",
        "wrong instruction": "wrong instruction: that of another task, while success is that of the task itself",
        "untrained": "untrained: its weights random",
    }
    described = "; ".join(text for name, text in controls.items() if any(row["control"] == name for row in rows))
    return "\n\n".join(["## Results", f"In closed loop.{f' Controls: {described}.' if described else ''}", rates])


def summary_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of an evaluation's table in the folder; none if there is no such table, or another one of that name."""
    file = folder / SUMMARY
    return read_summary(file) if file.is_file() else []


def read_summary(file: Path) -> list[dict[str, str]]:
    """Return the rows of a success_summary.csv; none if its columns are others.

    Raises:
        ValueError: what should be a number is not.
    """
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader) if _COLUMNS <= set(reader.fieldnames or ()) else []
    for row in rows:
        for name, kind in _NUMBERS.items():
            try:
                kind(row[name])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{file} is damaged: {name} is {row[name]!r} in the row of {row['task']!r}"
                ) from error
    return rows


def use(folder: Path, name: str) -> str | None:
    processor = read_json(folder / "processor_config.json")
    config = policy_config(folder) or processor
    if not config.get("action_horizon"):
        return None
    statistics = processor.get("statistics") or {}
    keys = sorted(statistics)
    has_state = any("state" in of_key for of_key in statistics.values())
    quoted = json.dumps(name, ensure_ascii=False)
    usage = _USAGE.format(
        name=quoted,
        key=f", unnorm_key={json.dumps(keys[0], ensure_ascii=False)}" if len(keys) > 1 else "",
        instruction="open the drawer",
        state=', "state": state' if has_state else "",
        horizon=config["action_horizon"],
        dim=config["action_dim"] or "action_dim",
    )
    pipeline = code(f'transformers.pipeline("vision-language-action", model={quoted})')
    return f"## Use\n\n{fenced(usage, 'python')}\n\nOr as a pipeline: {pipeline}, after `import hf_vla`."


def recipe(facts: Mapping | None, settings: str | None) -> str | None:
    """Return the section on the training: a trainer's facts, and the text of its configuration file."""
    if not facts and not settings:
        return None
    parts = ["## Training", _facts(facts or {})]
    if settings:
        parts.append(
            "<details><summary>The recipe, for <code>hf-vla train</code></summary>\n\n"
            f"{fenced(settings, 'yaml')}\n\n</details>"
        )
    return "\n\n".join(part for part in parts if part)


def licence(name: str | list | None) -> str:
    """Return the section on the licence, which the card's metadata name."""
    if name in (None, "unknown"):
        stated = "Not stated by those who trained it: set `license` above."
    else:
        stated = f"{code(name)}."
    return f"## Licence\n\n{stated} Weights that were trained from a pretrained backbone come under its licence too."


def _facts(facts: Mapping) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in facts.items() if value is not None)


def _dimensions(statistics: Mapping | None) -> str:
    return str(next((len(x) for x in (statistics or {}).values() if isinstance(x, list)), "–"))


def _modes(modes) -> str:
    if modes is None or isinstance(modes, str):
        return modes or "of the robot type"
    return ", ".join(dict.fromkeys(modes))


def _relative(statistics: Mapping) -> str:
    mode = statistics.get("action_mode", "stored")
    return "" if mode == "stored" else f", of actions {mode} to the state"


def _number(value) -> str:
    return "–" if value is None else f"{value:,}"


def run(folder: Path) -> str | None:
    """Return the section on what else of the run is in the folder: curves, videos, a report."""
    parts = []
    if (folder / "loss.png").is_file():
        parts.append("![losses, learning rates and evaluations over the steps of the training](loss.png)")
    if (folder / "learning.png").is_file():
        parts.append("![success and PPO's numbers over the iterations of learning by acting](learning.png)")
    if (folder / "report.html").is_file():
        parts.append("[report.html](report.html) has all of it on one page: download it and open it.")
    films = {film for pattern in ("*/videos/*.mp4", "*/*/videos/*.mp4") for film in folder.glob(pattern)}
    films = sorted(film for film in films if BEFORE not in film.relative_to(folder).parts)
    if films:
        links = [f"* [{plain(film.stem)}]({quote(film.relative_to(folder).as_posix())})" for film in films]
        parts.append("\n".join(["Episodes of the evaluation:", "", *links]))
    return "\n\n".join(["## The run", *parts]) if parts else None


#: The sections that are made from a folder's files
OF_FILES: dict[str, Callable[[Path], str | None]] = {
    "architecture": architecture,
    "data": data,
    "results": results,
    "run": run,
}
ORDER = ("architecture", "use", "data", "training", "results", "run", "licence")

__all__ = [
    "BEFORE",
    "OF_FILES",
    "ORDER",
    "SUMMARY",
    "licence",
    "policy_config",
    "read_json",
    "read_summary",
    "recipe",
    "summary_rows",
    "use",
]
