"""Mixtures as data files: those in `hf_vla/data/mixtures`, and the user's own.

A file is a list with one entry a member:

    - dataset: bridge_orig_1.0.0_lerobot     # folder under root, or with no root a folder or Hub repository
      robot: oxe_bridge                      # its statistics key; for a known robot type also its default cameras
      weight: 1.0
      columns: my_columns.yaml               # a file beside this one; and whatever else LeRobotDataset takes
"""

import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..robots.robot_types import ROBOTS
from ..utils.suggestions import did_you_mean
from .checks import is_integer, is_number
from .lerobot import LeRobotDataset

logger = logging.getLogger(__name__)


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(element) is kind for element in value)


# What the fields of an entry may hold; any other is judged by LeRobotDataset.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": (lambda value: isinstance(value, str), "a folder or Hub repository"),
    "robot": (lambda value: isinstance(value, str), "a robot type or another statistics key"),
    "weight": (lambda value: is_number(value) and 0 < value < float("inf"), "a positive number"),
    "action_horizon": (lambda value: is_integer(value, least=1), "a positive whole number"),
    "episodes": (_list_of(int), "a list of whole numbers"),
    "cameras": (_list_of(str), "a list of names"),
    "absolute_dims": (_list_of(int), "a list of whole numbers"),
    "columns": (lambda value: isinstance(value, (str, dict)), "a YAML file or what it would hold"),
    "max_open_videos": (is_integer, "a whole number"),
    "max_table_bytes": (is_integer, "a whole number"),
}


def mixture_names() -> list[str]:
    """The mixtures that come with the package."""
    folder = files("hf_vla").joinpath("data", "mixtures")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def read_mixture(name: str | Path) -> list[dict[str, Any]]:
    """The entries of a mixture of the package or of a YAML file.

    Raises:
        ValueError: neither a mixture's name nor a file, or a file that does not describe one.
    """
    known = mixture_names()
    if str(name) in known:
        text = files("hf_vla").joinpath("data", "mixtures", f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_bytes()
    else:
        hint = did_you_mean(name, known)
        raise ValueError(f"{str(name)!r} is no mixture and no YAML file; the mixtures are {', '.join(known)}{hint}")
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "dataset" in e for e in entries):
        raise ValueError(f"{name} must be a list of entries with dataset, robot and weight")
    for entry in entries:
        for field, (fits, what) in _FIELDS.items():
            default = entry.get(field) is None and field not in ("dataset", "weight")
            if field in entry and not default and not fits(entry[field]):
                raise ValueError(f"{name}: {field} of the entry of {entry['dataset']} is {entry[field]!r}, not {what}")
    return entries


def load_named_mixture(
    cls: Callable[..., Any],
    name: str | Path,
    root: str | Path | None = None,
    *,
    action_horizon: int | None = None,
    frame_cache: str | Path | None = None,
    **options: Any,
) -> Any:
    """A `DatasetMixture` of a data file's members.

    Args:
        cls: `DatasetMixture`, or a function that is called as it is.
        name: of a mixture of the package ("bridge_rt_1", "libero_all"), or a YAML file.
        root: the folder that the members' folders are in. Default: the members are paths or Hub repositories.
        action_horizon: default: that of the members' robot type.
        frame_cache: of the members that don't name one of their own.
        options: for `DatasetMixture`, such as `seed`.

    Raises:
        ValueError, FileNotFoundError, OSError: as for its parts.
    """
    members, weights = [], []
    for entry in read_mixture(name):
        entry = dict(entry)
        dataset, key, weight = entry.pop("dataset"), entry.pop("robot", None), entry.pop("weight", 1.0)
        robot = ROBOTS.get(key)
        if isinstance(columns := entry.get("columns"), str) and (beside := Path(name).parent / columns).is_file():
            entry["columns"] = beside
        if robot is not None and robot.cameras:
            entry.setdefault("cameras", list(robot.cameras))
        entry.setdefault("frame_cache", frame_cache)
        horizon = action_horizon or entry.pop("action_horizon", None) or (robot and robot.action_horizon)
        entry.pop("action_horizon", None)
        hint = "" if key is None or robot is not None else did_you_mean(key, ROBOTS)
        if not horizon and "delta_indices" not in entry:
            raise ValueError(f"{name}: {key!r} is no known robot type; give action_horizon for {dataset}{hint}")
        if hint:
            logger.warning(
                "%s: %r is no known robot type, and becomes the statistics key of %s with no camera order and modes of its "
                "own%s",
                name,
                key,
                dataset,
                hint,
            )
        path = dataset if root is None else Path(root).expanduser() / dataset
        if root is not None and not path.is_dir():
            raise FileNotFoundError(f"{path} is missing: the mixture {name} needs it in {root}")
        try:
            members.append(LeRobotDataset(path, action_horizon=horizon or None, key=key, **entry))
        except TypeError as error:
            raise ValueError(f"{name}: the entry of {dataset} does not fit LeRobotDataset: {error}") from error
        weights.append(weight)
    return cls(members, weights, **options)
