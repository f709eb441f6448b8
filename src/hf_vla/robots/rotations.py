"""Rotations from one representation to another.

| name | numbers | meaning |
|---|---|---|
| `euler_xyz` | 3 | roll, pitch, yaw in radians about the fixed axes x, y, z in this order: R = Rz(yaw) Ry(pitch) Rx(roll) |
| `axis_angle` | 3 | unit axis times angle in radians |
| `quaternion_xyzw`, `quaternion_wxyz` | 4 | of any length but zero; those made here are of length one with w >= 0 |
| `rotation_6d` | 6 | the first two rows of the matrix (Zhou et al. 2019, arXiv:1812.07035, in PyTorch3D's order) |
| `matrix` | 9 | the rotation matrix, row by row |
"""

from collections.abc import Callable

import numpy as np

SIZES = {
    "euler_xyz": 3,
    "axis_angle": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rotation_6d": 6,
    "matrix": 9,
}
_SMALL = 1e-7


def convert_rotation(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Rotations (..., n) in the representation `source` as (..., m) in the representation `target`, float64.

    Euler angles are in (-pi, pi], the pitch in [-pi/2, pi/2]; at a pitch of ±pi/2, where only the sum or difference of
    roll and yaw is determined, the yaw is 0. Axis-angle vectors are at most pi long.

    Raises:
        ValueError: an unknown representation, another number of values, a quaternion or 6D rotation of length zero.
    """
    for name in (source, target):
        if name not in SIZES:
            raise ValueError(f"unknown rotation representation {name!r}; possible: {', '.join(SIZES)}")
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] != SIZES[source]:
        raise ValueError(f"rotations as {source} have {SIZES[source]} numbers, got an array of shape {values.shape}")
    return _FROM_MATRIX[target](_TO_MATRIX[source](values))


def _matrix_from_quaternion(xyzw: np.ndarray) -> np.ndarray:
    x, y, z, w = np.moveaxis(_unit(xyzw, "quaternion"), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    # Of the four products of the quaternion with one of its numbers, the one with the largest number loses least.
    m = {(i, j): matrix[..., i, j] for i in range(3) for j in range(3)}
    xx, yy, zz = m[0, 0], m[1, 1], m[2, 2]
    products = [
        [1 + xx - yy - zz, m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
        [m[0, 1] + m[1, 0], 1 - xx + yy - zz, m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
        [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - xx - yy + zz, m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + xx + yy + zz],
    ]
    products = np.stack([np.stack(row, axis=-1) for row in products], axis=-2)
    best = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)
    xyzw = _unit(np.take_along_axis(products, best[..., None, None], axis=-2)[..., 0, :], "matrix")
    return np.where(xyzw[..., 3:] < 0, -xyzw, xyzw)


def _matrix_from_axis_angle(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # sin(angle / 2) / angle, with its series about 0.
    scale = np.where(angle < _SMALL, 0.5, np.sin(angle / 2) / np.where(angle < _SMALL, 1, angle))
    return _matrix_from_quaternion(np.concatenate([vector * scale, np.cos(angle / 2)], axis=-1))


def _axis_angle_from_matrix(matrix: np.ndarray) -> np.ndarray:
    xyzw = _quaternion_from_matrix(matrix)
    sine = np.linalg.norm(xyzw[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, xyzw[..., 3:])
    return xyzw[..., :3] * np.where(sine < _SMALL, 2, angle / np.where(sine < _SMALL, 1, sine))


def _matrix_from_euler(angles: np.ndarray) -> np.ndarray:
    (cr, cp, cy), (sr, sp, sy) = (np.moveaxis(part, -1, 0) for part in (np.cos(angles), np.sin(angles)))
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _euler_from_matrix(matrix: np.ndarray) -> np.ndarray:
    cosine = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    pitch = np.arctan2(-matrix[..., 2, 0], cosine)
    locked = cosine < _SMALL
    roll = np.where(
        locked,
        np.arctan2(-matrix[..., 1, 2], matrix[..., 1, 1]),
        np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]),
    )
    yaw = np.where(locked, 0.0, np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def _matrix_from_6d(values: np.ndarray) -> np.ndarray:
    first, second = (_unit(part, "6D rotation") for part in (values[..., :3], values[..., 3:]))
    second = second - (first * second).sum(-1, keepdims=True) * first
    # Of parallel vectors only rounding is left.
    second = _unit(np.where(np.abs(second).max(-1, keepdims=True) < _SMALL, 0, second), "6D rotation")
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def _unit(values: np.ndarray, what: str) -> np.ndarray:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    if (length == 0).any():
        where = np.argwhere(length[..., 0] == 0)[0].tolist()
        raise ValueError(f"a {what} of length zero is no rotation (at {where})")
    return values / length


_TO_MATRIX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "euler_xyz": _matrix_from_euler,
    "axis_angle": _matrix_from_axis_angle,
    "quaternion_xyzw": _matrix_from_quaternion,
    "quaternion_wxyz": lambda values: _matrix_from_quaternion(np.roll(values, -1, axis=-1)),
    "rotation_6d": _matrix_from_6d,
    "matrix": lambda values: values.reshape(*values.shape[:-1], 3, 3),
}
_FROM_MATRIX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "euler_xyz": _euler_from_matrix,
    "axis_angle": _axis_angle_from_matrix,
    "quaternion_xyzw": _quaternion_from_matrix,
    "quaternion_wxyz": lambda matrix: np.roll(_quaternion_from_matrix(matrix), 1, axis=-1),
    "rotation_6d": lambda matrix: matrix[..., :2, :].reshape(*matrix.shape[:-2], 6),
    "matrix": lambda matrix: matrix.reshape(*matrix.shape[:-2], 9),
}
