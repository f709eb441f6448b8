"""What a run may change of the policy that it continues (`policy` in a recipe): refused, or said."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from transformers.utils import logging

from ..data import LeRobotDataset
from ..processing.input_contract import InputContract, listed
from ..robots.robot_types import RobotType
from .input_contracts import contract_of_dataset

logger = logging.get_logger(__name__)

#: modes that mean the same for the dimensions of any robot
_KEPT_FOR_NEW_KEYS = ("q99", "min_max", "mean_std")
#: of the kept range; less is noise
_BEYOND = 0.1


def check_continued(
    processor, datasets: Iterable[LeRobotDataset], data, policy: str, new_inputs: bool = False
) -> None:
    """Compare the data of a run with what the policy that it continues was trained on, under the same statistics keys.

    Args:
        processor: of the policy, before it is changed.
        datasets: the run's.
        data: the run's `DataArguments`.
        policy: its name.
        new_inputs: whether the cameras, the state and the names of dimensions may differ.

    Raises:
        ValueError: they differ and may not; all of it is told, with the flags that would make the data fit.
    """
    for name in ("image_size", "prompt_template"):
        if (own := getattr(data, name)) and own != (before := getattr(processor, name)):
            logger.warning(f"{name} is {own!r}; {policy} was trained with {before!r}")
    for dataset in datasets:
        key = dataset.unnorm_key
        if key not in processor.statistics:
            logger.warning(
                f"{policy} was trained on {listed(processor.statistics)}; {key} is new to it, with statistics of its own"
            )
            continue
        before = processor.input_contract.of(key)
        now = contract_of_dataset(processor, dataset, data.use_state, before=before)
        if data.image_size:
            now = replace(now, image_sizes=before.image_sizes)
        for said in _choices(before, now):
            logger.warning(f"{dataset.name}: {said}")
        mode, own = processor.action_mode(key), dataset.mode_of_actions
        problems = list(_problems(before, now))
        if mode != own:
            dims = f" --absolute_dims {' '.join(map(str, mode.absolute_dims))}" if mode.absolute_dims else ""
            problems.append(f"its actions are {mode}, the data's {own}: add --action_mode {mode.name}{dims}")
        if problems and not new_inputs:
            raise ValueError(
                f"{policy} was trained on other inputs of {key!r} than {dataset.name} gives it: {'; '.join(problems)}. To train "
                "it for the new ones all the same, add --new_inputs true"
            )
        if problems:
            logger.warning(f"{policy} is trained for other inputs of {key!r} than before: {'; '.join(problems)}")


def differences_of_inputs(processor, dataset: LeRobotDataset, use_state: bool) -> list[str]:
    """Return how the dataset's inputs differ from those that the policy, which has its statistics key, was trained on.

    The wording is that of `hf-vla train`.
    """
    before = processor.input_contract.of(dataset.unnorm_key)
    return list(_problems(before, contract_of_dataset(processor, dataset, use_state, before=before)))


def _problems(before: InputContract, now: InputContract) -> Iterator[str]:
    if before.cameras and now.cameras != before.cameras:
        yield (
            f"its cameras are {listed(before.cameras)}, in this order, the data's {listed(now.cameras)}: add --cameras "
            f"{' '.join(before.cameras)}, or cameras: in the mixture's file"
        )
    if before.uses_state is False and now.uses_state:
        yield "it was trained without the robot's state: add --use_state false"
    if before.uses_state and not now.uses_state:
        yield "it was trained with the robot's state: add --use_state true, with data that has it"
    for what in ("state", "action"):
        names, own = getattr(before, f"{what}_names"), getattr(now, f"{what}_names")
        if names and own and names != own:
            yield (
                f"its {what} is {listed(names)}, the data's {listed(own)}: put them into the same order by --columns or --robot"
            )


def _choices(before: InputContract, now: InputContract) -> Iterator[str]:
    """What may differ, and is said."""
    if before.fps and now.fps != before.fps:
        yield f"{now.fps:g} frames per second; the policy was trained on {before.fps:g}: its chunks last longer or shorter"
    if before.robot_type and now.robot_type != before.robot_type:
        yield f"the robot type is {now.robot_type}; the policy was trained on {before.robot_type}"
    if before.cameras == now.cameras and before.image_sizes and now.image_sizes not in (None, before.image_sizes):
        yield (
            f"images of {_sizes(now)} are resized to {_sizes(before)}, at which the policy was trained; set image_size for others"
        )


def _sizes(contract: InputContract) -> str:
    return listed(f"{width}x{height}" for width, height in contract.image_sizes or ())


def modes_of_policy(policy, key: str, modes: dict, options: dict, robot: RobotType | None) -> tuple[dict, dict]:
    """Return modes and options as the continued policy has them for a key; for a new one without robot type, those of all its keys."""
    if key in policy.normalization_modes:
        return modes | dict(policy.normalization_modes[key]), dict(policy.normalization_options.get(key, {}))
    if robot is not None:
        return modes, options
    for modality in modes:
        given = [of_key[modality] for of_key in policy.normalization_modes.values() if modality in of_key]
        used = set().union(*([each] if isinstance(each, str) else each for each in given))
        if len(used) == 1 and used <= set(_KEPT_FOR_NEW_KEYS):
            modes = modes | {modality: used.pop()}
    return modes, options


def say_changed_modes(key: str, before: Mapping, now: Mapping, policy: str) -> None:
    """Log which normalisation modes of a key, {modality: a mode or one per dimension}, are not those of the policy."""
    for modality in now:
        old, new = before.get(modality), now[modality]
        if old is not None and _per_dimension(old, new) != _per_dimension(new, old):
            logger.warning(
                f"{modality}s of {key!r} are normalised by {_shown(new)}; {policy} was trained with {_shown(old)}, and has to "
                "learn the new scale"
            )


def _per_dimension(modes: str | list[str], like: str | list[str]) -> list[str]:
    return [modes] * (1 if isinstance(like, str) else len(like)) if isinstance(modes, str) else list(modes)


def _shown(modes: str | list[str]) -> str:
    return modes if isinstance(modes, str) else listed(dict.fromkeys(modes))


def say_replaced_statistics(before: Mapping, now: Mapping, policy: str) -> None:
    """Log which keys' statistics are not those of the policy any more."""
    for key in sorted(before.keys() & now.keys()):
        if not _same_statistics(before[key], now[key]):
            logger.warning(
                f"the statistics of {key!r} are replaced by those of this run's data; {policy} was trained with others, so that "
                "the same action is another number to it. keep_statistics keeps those of the policy; an unnorm_key of the data's own "
                "in a mixture's file keeps both"
            )


def say_beyond_statistics(before: Mapping, now: Mapping, policy: str) -> None:
    """Log which dimensions of the data go beyond the range of the statistics that are kept."""
    for key in sorted(before.keys() & now.keys()):
        for modality in ("action", "state"):
            kept, own = before[key].get(modality) or {}, now[key].get(modality) or {}
            if not {"min", "max"} <= kept.keys() & own.keys():
                continue
            low, high = np.asarray(kept["min"]), np.asarray(kept["max"])
            beyond = np.maximum(low - own["min"], own["max"] - high) > _BEYOND * (high - low)
            if beyond.any():
                logger.warning(
                    f"{modality}s of {key!r} go beyond the range in which {policy} was trained, whose statistics are kept, in "
                    f"the dimensions {listed(np.flatnonzero(beyond).tolist())}; what is clipped there can't be learnt"
                )


def _same_statistics(one: dict, other: dict) -> bool:
    """Return whether a key's statistics are of the same data, up to rounding."""
    for modality in ("action", "state"):
        a, b = one.get(modality) or {}, other.get(modality) or {}
        for name in ("min", "max", "q01", "q99", "mean", "std"):
            if (name in a) != (name in b):
                continue  # native checkpoints hold fewer
            if name in a and not (
                np.shape(a[name]) == np.shape(b[name]) and np.allclose(a[name], b[name], rtol=1e-4, atol=1e-6)
            ):
                return False
    return True


__all__ = [
    "check_continued",
    "differences_of_inputs",
    "modes_of_policy",
    "say_beyond_statistics",
    "say_changed_modes",
    "say_replaced_statistics",
]
