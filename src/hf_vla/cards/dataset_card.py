"""The card (README.md) of a LeRobot dataset, in its folder and Hub repository, made from its metadata.

As in a policy's card, generated sections stand between comments and are renewed; what is outside of them, and metadata that a user
set, are kept. A card without such comments is a user's own.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import atomic_write
from .markdown import code, fenced, plain, table
from .model_card import FILE, put_section, read_card

#: LeRobot's tag, by which the Hub's dataset viewer shows episodes; and ours
TAGS = ("LeRobot", "robotics")
ORDER = ("dataset", "instructions", "use")
_NOTE = "<!-- hf_vla: sections between such comments are renewed when the dataset is pushed; what is outside of them stays. -->"
_INSTRUCTIONS = 20
_USE = """from hf_vla.data import LeRobotDataset

dataset = LeRobotDataset({name}, action_horizon=16)
item = dataset[0]  # {{"image": [...], "lang": "...", "action": (16, {dim}), ...}}, robot units"""


def compose(
    info: Mapping[str, Any],
    instructions: Sequence[str],
    name: str,
    existing: str | None = None,
    metadata: Mapping = {},
) -> str | None:
    """Return the card's text, or None if the existing one is a user's own.

    Args:
        info: the dataset's `meta/info.json`.
        instructions: what the robot was told in it.
        name: the dataset's Hub repository or folder.
        existing: the card to update.
        metadata: fields of the card's metadata to set, such as `license`.
    """
    from huggingface_hub import DatasetCardData

    if existing is None:
        # The viewer reads the tables; without this it would take meta/'s parquet files for data, too.
        configs = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
        fields = DatasetCardData(license="unknown", task_categories=["robotics"], tags=list(TAGS), configs=configs)
        body = f"{_NOTE}\n\n# {plain(name)}\n\nRobot demonstrations as a LeRobot dataset.\n\n"
    else:
        read = read_card(existing, name)
        if read is None:
            return None
        fields, body = read
    for key, value in metadata.items():
        if value is not None:
            setattr(fields, key, value)
    for key, section in _sections(info, instructions, name).items():
        body = put_section(body, key, section, ORDER)
    return f"---\n{fields.to_yaml()}\n---\n\n{body}"


def write_dataset_card(folder: Path, info: Mapping[str, Any], instructions: Sequence[str]) -> None:
    """Write or renew the card in a dataset's folder, under the folder's name."""
    file = folder / FILE
    existing = file.read_text(encoding="utf-8") if file.is_file() else None
    text = compose(info, instructions, folder.resolve().name, existing)
    if text is not None:
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")


def _sections(info: Mapping[str, Any], instructions: Sequence[str], name: str) -> dict[str, str]:
    features = info.get("features") or {}
    facts = [
        ["format", f"LeRobot {plain(info.get('codebase_version', ''))}"],
        ["robot type", code(info["robot_type"]) if info.get("robot_type") else "–"],
        ["episodes", f"{info.get('total_episodes', '–')}"],
        ["frames", f"{info.get('total_frames', '–')}"],
        ["frames per second", f"{info.get('fps', '–')}"],
    ]
    rows = [
        [code(key), plain(feature.get("dtype", "")), _shape(feature), plain(_names(feature))]
        for key, feature in features.items()
        if key.startswith("observation.") or key == "action"
    ]
    shown = [f"* {plain(text)}" for text in instructions[:_INSTRUCTIONS]]
    if len(instructions) > _INSTRUCTIONS:
        shown.append(f"* and {len(instructions) - _INSTRUCTIONS} more")
    dim = (features.get("action") or {}).get("shape") or ["action_dim"]
    usage = _USE.format(name=json.dumps(name, ensure_ascii=False), dim=dim[0])
    return {
        "dataset": "\n\n".join(
            ["## Dataset", table(["", ""], facts), table(["column", "type", "shape", "dimensions"], rows)]
        ),
        "instructions": "\n".join(["## Instructions", "", *shown]),
        "use": f"## Use\n\n{fenced(usage, 'python')}\n\nLeRobot reads it, too; so does `hf-vla train --dataset {plain(name)}`.",
    }


def _shape(feature: Mapping) -> str:
    return " × ".join(str(size) for size in feature.get("shape") or ())


def _names(feature: Mapping) -> str:
    names = feature.get("names") or []
    if isinstance(names, Mapping):
        names = [one for group in names.values() for one in (group if isinstance(group, list) else [group])]
    return ", ".join(map(str, names))


__all__ = ["compose", "write_dataset_card"]
