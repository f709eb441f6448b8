"""Mixtures as data files: those in `hf_vla/data/mixtures`, and the user's own.

A file is a list with one entry a member:

    - dataset: bridge_orig_1.0.0_lerobot     # folder under root, or with no root a folder or Hub repository
      robot: oxe_bridge                      # its statistics key; for a known robot type also its default cameras
      weight: 1.0
      columns: my_columns.yaml               # and whatever else LeRobotDataset takes
"""

import difflib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..processing.robots import ROBOTS
from .lerobot import LeRobotDataset


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
        text = Path(name).read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{str(name)!r} is no mixture and no YAML file; the mixtures are {', '.join(known)}{hint}")
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "dataset" in e for e in entries):
        raise ValueError(f"{name} must be a list of entries with dataset, robot and weight")
    return entries


def load_named_mixture(
    cls: Callable[..., Any],
    name: str | Path,
    root: str | Path | None = None,
    *,
    action_horizon: int | None = None,
    **options: Any,
) -> Any:
    """A `DatasetMixture` of a data file's members.

    Args:
        cls: `DatasetMixture`, or a function that is called as it is.
        name: of a mixture of the package ("bridge_rt_1", "libero_all"), or a YAML file.
        root: the folder that the members' folders are in. Default: the members are paths or Hub repositories.
        action_horizon: default: that of the members' robot type.
        options: for `DatasetMixture`, such as `seed`.

    Raises:
        ValueError, FileNotFoundError, OSError: as for its parts.
    """
    members, weights = [], []
    for entry in read_mixture(name):
        entry = dict(entry)
        dataset, key, weight = entry.pop("dataset"), entry.pop("robot", None), entry.pop("weight", 1.0)
        robot = ROBOTS.get(key)
        if robot is not None and robot.cameras:
            entry.setdefault("cameras", list(robot.cameras))
        horizon = action_horizon or entry.pop("action_horizon", None) or (robot and robot.action_horizon)
        entry.pop("action_horizon", None)
        if not horizon and "delta_indices" not in entry:
            raise ValueError(f"{name}: {key!r} is no known robot type; give action_horizon for {dataset}")
        path = dataset if root is None else Path(root).expanduser() / dataset
        if root is not None and not path.is_dir():
            raise FileNotFoundError(f"{path} is missing: the mixture {name} needs it in {root}")
        try:
            members.append(LeRobotDataset(path, action_horizon=horizon or None, key=key, **entry))
        except TypeError as error:
            raise ValueError(f"{name}: the entry of {dataset} does not fit LeRobotDataset: {error}") from error
        weights.append(weight)
    return cls(members, weights, **options)
