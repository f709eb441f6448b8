"""The steps that benchmark records name: what happens to images before a policy sees them, and to actions before a robot does.

* Images: `rotate_180`, `flip_vertical`, `crop`, `centre_crop`, `pad`, `resize`, `resize_with_pad`; `process_image` runs a
  record's list of them.
* Actions: `scale`, `permute_columns`, `euler_to_axis_angle`, `threshold_gripper`, `RelativeGripper`; `ActionProcessor` runs
  a record's list of them.
* Success and scores: `SuccessRule`, `nested_mean`.

They need only NumPy and Pillow, and Python 3.8: simulators with an environment of their own use them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "ACTION_STEPS",
    "IMAGE_STEPS",
    "ActionProcessor",
    "RelativeGripper",
    "SuccessRule",
    "centre_crop",
    "crop",
    "euler_to_axis_angle",
    "flip_vertical",
    "nested_mean",
    "pad",
    "permute_columns",
    "process_image",
    "quaternion_to_axis_angle",
    "resize",
    "resize_with_pad",
    "rotate_180",
    "scale",
    "threshold_gripper",
]

_PILLOW_FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


# Images


def rotate_180(image: Image.Image) -> Image.Image:
    """Flip an image on both axes."""
    return image.transpose(Image.ROTATE_180)


def flip_vertical(image: Image.Image) -> Image.Image:
    """Turn an image upside down, left and right as they are."""
    return image.transpose(Image.FLIP_TOP_BOTTOM)


def crop(image: Image.Image, top: int, bottom: int, left: int, right: int) -> Image.Image:
    """Cut out rows `top` to `bottom` and columns `left` to `right`, the ends not included.

    Raises:
        ValueError: the image does not have these rows and columns.
    """
    if not (0 <= top < bottom <= image.height and 0 <= left < right <= image.width):
        raise ValueError(
            f"rows {top} to {bottom} and columns {left} to {right} are not within an image of {image.width} x "
            f"{image.height} pixels (width x height)"
        )
    return image.crop((left, top, right, bottom))


def centre_crop(image: Image.Image, fraction: float) -> Image.Image:
    """Cut out the middle of an image, `fraction` of its width and height, in (0, 1].

    Raises:
        ValueError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; possible: above 0, up to 1")
    width, height = int(image.width * fraction), int(image.height * fraction)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pad(image: Image.Image, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> Image.Image:
    """Add black rows and columns."""
    padded = Image.new(image.mode, (left + image.width + right, top + image.height + bottom))
    padded.paste(image, (left, top))
    return padded


def resize(image: Image.Image, size: Sequence[int], filter: str) -> Image.Image:
    """Resize an image to `size`, (width, height).

    Args:
        image: RGB image.
        size: width and height in pixels.
        filter: "nearest", "bilinear" or "bicubic", as Pillow has them, or "area": every new pixel is the mean of the area
            that it covers, which is OpenCV's INTER_AREA when both sides shrink.

    Raises:
        ValueError: unknown filter, or "area" for an image that would grow.
    """
    size = (int(size[0]), int(size[1]))
    if filter == "area":
        return image.copy() if image.size == size else _area_resize(image, size)
    if filter not in _PILLOW_FILTERS:
        raise ValueError(f"unknown filter {filter!r}; possible: {', '.join([*_PILLOW_FILTERS, 'area'])}")
    return image.resize(size, _PILLOW_FILTERS[filter])


def resize_with_pad(image: Image.Image, size: Sequence[int], filter: str) -> Image.Image:
    """Resize an image into the middle of a black one of `size`, (width, height), with its proportions kept.

    As in openpi's `image_tools.resize_with_pad`.
    """
    width, height = int(size[0]), int(size[1])
    ratio = max(image.width / width, image.height / height)
    inner = (int(image.width / ratio), int(image.height / ratio))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded = Image.new(image.mode, (width, height))
    padded.paste(resize(image, inner, filter), (left, top))
    return padded


#: What a record may name in the steps of a view. Those with arguments are written `{NAME: {ARGUMENT: VALUE}}`.
IMAGE_STEPS: dict[str, Callable[..., Image.Image]] = {
    "rotate_180": rotate_180,
    "flip_vertical": flip_vertical,
    "crop": crop,
    "centre_crop": centre_crop,
    "pad": pad,
    "resize": resize,
    "resize_with_pad": resize_with_pad,
}


def process_image(image: Any, steps: Iterable[Any]) -> Image.Image:
    """Run the steps of a record's view on a PIL image or a uint8 array (H, W, 3)."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    for step in steps:
        name, arguments = named_step(step)
        image = IMAGE_STEPS[name](image, **arguments)
    return image


def named_step(step: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a step as a record has it, "NAME" or {NAME: {ARGUMENT: VALUE}}."""
    if isinstance(step, str):
        return step, {}
    ((name, arguments),) = step.items()
    return name, dict(arguments or {})


def _area_resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if size[0] > image.width or size[1] > image.height:
        raise ValueError(
            f"the filter 'area' shrinks only: the image has {image.width} x {image.height} pixels, and {size[0]} x "
            f"{size[1]} are asked for"
        )
    rows, columns = _coverage(image.height, size[1]), _coverage(image.width, size[0])
    pixels = np.asarray(image, dtype=np.float32)
    shrunk = np.einsum("ij,jkc,lk->ilc", rows, pixels, columns, optimize=True)
    return Image.fromarray(np.clip(np.rint(shrunk), 0, 255).astype(np.uint8))


def _coverage(old: int, new: int) -> np.ndarray:
    """Float32 (new, old): which share of each new pixel each old pixel covers."""
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    return (np.clip(high - low, 0, None) * (new / old)).astype(np.float32)


# Actions


def scale(action: np.ndarray, columns: Sequence[int], factor: float) -> np.ndarray:
    """Multiply some of an action's values."""
    action = action.copy()
    action[list(columns)] *= factor
    return action


def permute_columns(action: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return the values in another order: value i of the result is value `order[i]` of the action.

    Raises:
        ValueError: `order` does not name every value once.
    """
    if sorted(order) != list(range(action.shape[-1])):
        raise ValueError(f"the order {list(order)} does not name each of {action.shape[-1]} values once")
    return action[..., list(order)]


def euler_to_axis_angle(action: np.ndarray, columns: Sequence[int] = (3, 4, 5)) -> np.ndarray:
    """Replace roll, pitch, yaw (radians, about fixed axes, in this order) by the rotation vector of the same rotation."""
    action = action.copy()
    columns = list(columns)
    half = np.asarray(action[columns], dtype=np.float64) / 2
    (sr, sp, sy), (cr, cp, cy) = np.sin(half), np.cos(half)
    quaternion = [
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    ]
    # The shorter of the two rotations that a quaternion and its negative stand for.
    action[columns] = quaternion_to_axis_angle(np.array(quaternion) * (1 if quaternion[3] >= 0 else -1))
    return action


def quaternion_to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of a quaternion (x, y, z, w), up to 2 pi long: the quaternion's sign is kept.

    As in robosuite's `transform_utils.quat2axisangle`, with which LIBERO's demonstrations were made.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3]) * (2.0 * math.acos(w) / sine)


def threshold_gripper(
    action: np.ndarray,
    columns: Sequence[int],
    above: float,
    below: float,
    threshold: float = 0.5,
    inclusive: bool = False,
) -> np.ndarray:
    """Replace gripper values by one of two commands.

    Args:
        action: (D,).
        columns: which values are grippers.
        above, below: the commands for values above the threshold, and for the others.
        threshold: the limit.
        inclusive: whether the limit itself counts as above.
    """
    action = action.copy()
    for column in columns:
        value = action[column]
        action[column] = above if value > threshold or (inclusive and value == threshold) else below
    return action


class RelativeGripper:
    """A gripper that takes changes: a large change of the predicted opening is held for several steps ("sticky").

    As in the evaluation of Google's robot in SimplerEnv (Li et al., 2024). The value of an episode's first step gives no
    command. Afterwards the command is the earlier value minus the new one; if it is larger than `threshold`, it is repeated until
    it was given `hold` times, and the earlier value becomes this one.

    Args:
        column: which of an action's values is the gripper.
        threshold: change from which a command is held.
        hold: steps for which it is held.
    """

    def __init__(self, column: int, threshold: float = 0.5, hold: int = 10):
        self.column, self.threshold, self.hold = column, threshold, hold
        self.reset()

    def reset(self) -> None:
        """Start an episode, or a new instruction."""
        self._earlier = None
        self._held, self._times = 0.0, 0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        action = action.copy()
        action[self.column] = self._command(float(action[self.column]))
        return action

    def _command(self, value: float) -> float:
        if self._earlier is None:
            self._earlier, change = value, 0.0
        else:
            change = self._earlier - value
        if abs(change) > self.threshold and not self._times:
            self._held, self._times, self._earlier = change, self.hold, value
        if self._times:
            self._times -= 1
            return self._held
        return change


#: What a record may name in the steps of an action. Those of a class have a state, which `ActionProcessor.reset` clears.
ACTION_STEPS: dict[str, Callable[..., Any]] = {
    "scale": scale,
    "permute_columns": permute_columns,
    "euler_to_axis_angle": euler_to_axis_angle,
    "threshold_gripper": threshold_gripper,
    "relative_gripper": RelativeGripper,
}


class ActionProcessor:
    """Turns actions in robot units into those that a simulator takes, by the steps of a record."""

    def __init__(self, steps: Iterable[Any]):
        self._steps: list[Callable[[np.ndarray], np.ndarray]] = []
        self._resets: list[Callable[[], None]] = []
        for step in steps:
            name, arguments = named_step(step)
            function = ACTION_STEPS[name]
            if isinstance(function, type):
                made = function(**arguments)
                self._resets.append(made.reset)
                self._steps.append(made)
            else:
                self._steps.append(lambda action, f=function, a=arguments: f(action, **a))

    def reset(self) -> None:
        """Start an episode, or a new instruction."""
        for reset in self._resets:
            reset()

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the simulator's action, float64 (D,)."""
        action = np.array(action, dtype=np.float64)  # a copy: some simulators change what they are given
        for step in self._steps:
            action = step(action)
        return action


# Success and scores


class SuccessRule:
    """When a simulator's success flag counts.

    Args:
        rule: "any_step"; "last_step", the flag when the episode's time is over; or "sampled", the flag after every `every`-th
            step.
        every: for "sampled".

    Raises:
        ValueError: unknown rule, or `every` missing or not fitting.
    """

    RULES = ("any_step", "last_step", "sampled")

    def __init__(self, rule: str, every: int | None = None):
        if rule not in self.RULES:
            raise ValueError(f"unknown success rule {rule!r}; possible: {', '.join(self.RULES)}")
        if (rule == "sampled") != (every is not None) or (every is not None and every < 1):
            raise ValueError(f"every is {every} with the success rule {rule!r}; 'sampled' alone takes it, from 1")
        self.rule, self.every = rule, every

    def counts(self, step: int, last: bool) -> bool:
        """Return whether the flag counts after step number `step`, from 1, which may be the episode's last."""
        if self.rule == "any_step":
            return True
        return last if self.rule == "last_step" else step % self.every == 0


def nested_mean(rates: Mapping[str, float], groups: Any, exclude: Iterable[str] = ()) -> float:
    """Return the unweighted mean over groups of the means over their members, however deep they are nested.

    Args:
        rates: success rate by task.
        groups: a task's name, a list of groups, or a mapping name → group.
        exclude: tasks that do not count.

    Raises:
        ValueError: a task that counts has no rate, or nothing counts.
    """
    excluded = set(exclude)
    leaves = list(_leaves(groups))
    if missing := [task for task in leaves if task not in rates and task not in excluded]:
        raise ValueError(f"no rates are given for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}")

    def mean(group: Any) -> float | None:
        if isinstance(group, str):
            return None if group in excluded else rates[group]
        members = group.values() if isinstance(group, Mapping) else group
        found = [value for value in map(mean, members) if value is not None]
        return sum(found) / len(found) if found else None

    result = mean(groups)
    if result is None:
        raise ValueError("none of the tasks counts")
    return result


def _leaves(groups: Any) -> Iterable[str]:
    if isinstance(groups, str):
        yield groups
    else:
        for member in groups.values() if isinstance(groups, Mapping) else groups:
            yield from _leaves(member)
