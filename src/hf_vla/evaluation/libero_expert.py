"""A scripted expert for LIBERO's tasks that move an object into or onto something, from the simulator's state."""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numpy as np

__all__ = ["PickAndPlaceExpert"]

_GAIN = 1.2
_METRES_PER_ACTION, _RADIANS_PER_ACTION = 0.05, 0.5
_CLOSE, _OPEN = 0.0, 1.0
# Metres:
_FINGER_OPENING = 0.076  # the fingers open to 0.08
_GRASP_DEPTH = 0.03  # of the grip site below the top of an object
_FINGERTIP = 0.008  # how far the fingers reach below the grip site
_HAND = 0.05  # what stands out above the grip site, the hand above it touches
_APPROACH = 0.07  # above the grasp, where the fingers are aligned before they go down
_CLEARANCE = 0.03  # between what is carried and what it is carried over
_DROP = 0.01  # an object is let go so high above where it is to stand
# Fingers and hand: half width along the closing direction, half depth across it, lowest and highest point above the
# grip site.
_HAND_BOXES = ((0.05, 0.012, 0.0, _HAND), (0.105, 0.04, _HAND, 0.15))
# Control steps:
_CLOSING, _OPENING = 10, 5


class _Move(NamedTuple):
    """Where the grip site is to be, the horizontal direction in which the fingers close (radians), and the gripper."""

    position: np.ndarray
    angle: float
    gripper: float


class PickAndPlaceExpert:
    """Brings one object after the other to its goal: above it, down, close, lift, carry, lower, open, up.

    What to do follows from the simulator's state, so that the expert recovers from disturbances: an object that was
    pushed away or lost is approached again.

    Args:
        simulator: LIBERO's `OffScreenRenderEnv`, after a reset.

    Raises:
        NotImplementedError: the goal is not that objects are in or on something.
    """

    def __init__(self, simulator: Any):
        self._simulator = simulator.env
        self._goals = []
        for predicate, name, *target in self._simulator.parsed_problem["goal_state"]:
            if predicate not in ("in", "on") or name not in self._simulator.objects_dict:
                raise NotImplementedError(
                    "LIBERO's scripted expert puts objects into or onto something; this task's goal is "
                    f"{' '.join([predicate, name, *target])}"
                )
            self._goals.append((name, target[0]))
        self._own_points: dict[str, np.ndarray] = {}
        self._others: tuple[str, np.ndarray] | None = None
        self._goal, self._phase, self._since = 0, "above", 0

    def action(self, step: int) -> np.ndarray:
        """Return the action, (7,), for the current state; `step` counts the steps executed so far."""
        for _ in range(10):
            phase = self._phase
            move = getattr(self, f"_{phase}")(step)
            if self._phase == phase:
                break
            self._since = step
        translation = _GAIN * (move.position - self._hand) / _METRES_PER_ACTION
        rotation = _GAIN * self._turn(move.angle) / _RADIANS_PER_ACTION
        return np.clip([*translation, *rotation, move.gripper], -1, 1)

    # ------------------------------------------------------------------------------------------ phases

    def _above(self, step: int) -> _Move:
        grasp = self._grasp()
        target = grasp.position + [0, 0, _APPROACH]
        away = target - self._hand
        if np.linalg.norm(away[:2]) > 0.05:  # first up, over what stands in the way
            target[2] = max(target[2], self._hand[2])
        elif np.linalg.norm(away[:2]) < 0.008 and abs(away[2]) < 0.02 and abs(self._yaw_error(grasp.angle)) < 0.05:
            self._phase = "down"
        return _Move(target, grasp.angle, _OPEN)

    def _down(self, step: int) -> _Move:
        grasp = self._grasp()
        away = grasp.position - self._hand
        if np.linalg.norm(away[:2]) > 0.03:
            self._phase = "above"
        elif np.linalg.norm(away) < 0.008 or step - self._since > 40:
            self._phase = "close"
            self._held_at = grasp
        return grasp

    def _close(self, step: int) -> _Move:
        if step - self._since >= _CLOSING:
            self._phase = "lift"
        return self._held_at._replace(gripper=_CLOSE)

    def _lift(self, step: int) -> _Move:
        if self._lost():
            self._phase = "above"
        height = self._carrying_height()
        if self._hand[2] > height - 0.02:
            self._phase = "carry"
        return self._held_at._replace(position=np.array([*self._held_at.position[:2], height]), gripper=_CLOSE)

    def _carry(self, step: int) -> _Move:
        if self._lost():
            self._phase = "above"
        target = self._over_goal()
        if np.linalg.norm(target[:2] - self._hand[:2]) < 0.015:
            self._phase = "lower"
        return self._held_at._replace(position=np.array([*target[:2], self._carrying_height()]), gripper=_CLOSE)

    def _lower(self, step: int) -> _Move:
        if self._lost():
            self._phase = "above"
        target = self._over_goal()
        if self._hand[2] < target[2] + 0.005 or step - self._since > 40:
            self._phase = "open"
            self._held_at = self._held_at._replace(position=self._hand.copy())
        return self._held_at._replace(position=target, gripper=_CLOSE)

    def _open(self, step: int) -> _Move:
        if step - self._since >= _OPENING:
            self._phase = "up"
        return self._held_at._replace(gripper=_OPEN)

    def _up(self, step: int) -> _Move:
        target = self._held_at.position + [0, 0, 0.12]
        if self._hand[2] > target[2] - 0.02:
            if self._goal + 1 < len(self._goals):
                self._goal += 1
                self._phase = "above"
            elif not self._simulator._check_success():
                self._phase = "above"  # it slipped away: again
        return self._held_at._replace(position=target, gripper=_OPEN)

    # ------------------------------------------------------------------------------------------ geometry

    @property
    def _object(self) -> str:
        return self._goals[self._goal][0]

    @property
    def _hand(self) -> np.ndarray:
        return self._simulator.sim.data.site_xpos[self._simulator.robots[0].eef_site_id]

    def _body(self, name: str) -> int:
        return self._simulator.obj_body_id[name]

    def _points(self, name: str) -> np.ndarray:
        """Corners of the collision shapes of an object, (N, 3), in the world."""
        model, data = self._simulator.sim.model._model, self._simulator.sim.data._data
        body = self._body(name)
        rotation, position = data.xmat[body].reshape(3, 3), data.xpos[body]
        if name not in self._own_points:
            corners = [_corners(model, data, geom) for geom in _geoms(model, body)]
            self._own_points[name] = (np.concatenate(corners) - position) @ rotation
        return self._own_points[name] @ rotation.T + position

    def _grasp(self) -> _Move:
        """Where to grasp the object: the place that is free and needs the smallest turn of the hand."""
        points = self._points(self._object)
        candidates = self._middle_grasps(points) or self._rim_grasps(points)
        candidates.sort(key=lambda grasp: round(abs(self._yaw_error(grasp.angle)), 1))
        boxes = self._obstacles()
        return min(candidates, key=lambda grasp: _overlap(grasp, boxes))

    def _middle_grasps(self, points: np.ndarray) -> list[_Move]:
        """Across the middle of the object, in the directions in which it fits between the fingers."""
        bottom, top = points[:, 2].min(), points[:, 2].max()
        height = top - min(_GRASP_DEPTH, (top - bottom) / 2)
        height = max(height, bottom + _FINGERTIP)
        between = points[points[:, 2] > height - _FINGERTIP, :2]
        grasps = []
        for angle in np.arange(12) * np.pi / 12:
            axes = _direction(angle), _direction(angle + np.pi / 2)
            if np.ptp(between @ axes[0]) < _FINGER_OPENING:
                middle = sum(axis * ((between @ axis).min() + (between @ axis).max()) / 2 for axis in axes)
                grasps.append(_Move(np.array([*middle, height]), angle, _OPEN))
        return grasps

    def _rim_grasps(self, points: np.ndarray) -> list[_Move]:
        """At four places of the rim, one finger inside."""
        top = points[:, 2].max()
        rim = points[points[:, 2] > top - 0.01, :2]
        middle = (rim.min(0) + rim.max(0)) / 2
        grasps = []
        for angle in np.arange(4) * np.pi / 2 + np.pi / 2:
            axis = _direction(angle)
            place = middle + axis * (((rim - middle) @ axis).max() - 0.005)
            grasps.append(_Move(np.array([*place, top - 0.012]), angle, _OPEN))
        return grasps

    def _obstacles(self) -> np.ndarray:
        """Lowest and highest corners, (N, 2, 3), of the boxes around all collision shapes but the robot's and the object's."""
        model, data = self._simulator.sim.model._model, self._simulator.sim.data._data
        if self._others is None or self._others[0] != self._object:
            own = set(_geoms(model, self._body(self._object)))
            robot = ("robot0_", "gripper0_", "mount0_")
            others = [
                geom
                for geom in range(model.ngeom)
                if model.geom_group[geom] == 0
                and model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_PLANE
                and geom not in own
                and not model.body(model.geom_bodyid[geom]).name.startswith(robot)
            ]
            self._others = self._object, np.array(others)
        others = self._others[1]
        rotation = data.geom_xmat[others].reshape(-1, 3, 3)
        middle = data.geom_xpos[others] + np.einsum("nij,nj->ni", rotation, model.geom_aabb[others, :3])
        half = np.einsum("nij,nj->ni", np.abs(rotation), model.geom_aabb[others, 3:])
        return np.stack([middle - half, middle + half], axis=1)

    def _lost(self) -> bool:
        """Whether the object is no longer between the fingers."""
        points = self._points(self._object)
        low, high = points.min(0) - 0.02, points.max(0) + 0.02
        return not bool(np.all((self._hand > low) & (self._hand < high)))

    def _carrying_height(self) -> float:
        """The grip site's height at which the object clears all other objects, and fixtures on its way."""
        points, boxes = self._points(self._object), self._obstacles()
        ends = np.stack([self._hand[:2], self._over_goal()[:2]])
        low, high = ends.min(0) - 0.08, ends.max(0) + 0.08
        on_the_way = np.all((boxes[:, 1, :2] > low) & (boxes[:, 0, :2] < high), axis=1)
        others = [self._points(name)[:, 2].max() for name in self._simulator.objects_dict if name != self._object]
        highest = max([*others, *boxes[on_the_way, 1, 2]])
        return highest + _CLEARANCE + self._hand[2] - points[:, 2].min()

    def _over_goal(self) -> np.ndarray:
        """The grip site's position from which the object is let go."""
        goal = self._goals[self._goal][1]
        sim = self._simulator.sim
        points = self._points(self._object)
        middle = (points.min(0) + points.max(0)) / 2
        lowest = points[:, 2].min()
        if goal in self._simulator.object_sites_dict:
            site = self._simulator.object_sites_dict[goal]
            place = sim.data.get_site_xpos(goal).copy()
            size = np.abs(sim.data.get_site_xmat(goal) @ site.size)
            floor = place[2] - size[2]
            parent = site.parent_name
        else:
            place, parent = sim.data.body_xpos[self._body(goal)].copy(), goal
            floor = self._points(goal)[:, 2].max()
        height = floor + _DROP + self._hand[2] - lowest
        if parent in self._simulator.objects_dict:
            height = max(height, self._points(parent)[:, 2].max() - _HAND)
        return np.array([*(place[:2] + self._hand[:2] - middle[:2]), height])

    def _closing_angle(self) -> float:
        data, gripper = self._simulator.sim.data, self._simulator.robots[0].gripper
        left, right = (
            data.get_geom_xpos(gripper.important_geoms[f"{side}_fingerpad"][0]) for side in ("left", "right")
        )
        return float(np.arctan2(*(left - right)[1::-1]))

    def _yaw_error(self, angle: float) -> float:
        """The turn, within +-pi / 2, that brings the closing direction to `angle` or its opposite."""
        return (angle - self._closing_angle() + np.pi / 2) % np.pi - np.pi / 2

    def _turn(self, angle: float) -> np.ndarray:
        """The rotation vector that points the hand straight down and turns the fingers to `angle`."""
        approach = self._simulator.sim.data.site_xmat[self._simulator.robots[0].eef_site_id].reshape(3, 3)[:, 2]
        return np.cross(approach, [0, 0, -1]) + [0, 0, self._yaw_error(angle)]


def _overlap(grasp: _Move, boxes: np.ndarray) -> float:
    """How much of the hand and the open fingers at a grasp lies in obstacles, in cubic metres."""
    along = np.abs(_direction(grasp.angle)), np.abs(_direction(grasp.angle + np.pi / 2))
    volume = 0.0
    for half_width, half_depth, low, high in _HAND_BOXES:
        half = half_width * along[0] + half_depth * along[1]
        lowest = grasp.position + [*-half, low]
        highest = grasp.position + [*half, high]
        sides = np.minimum(highest, boxes[:, 1]) - np.maximum(lowest, boxes[:, 0])
        volume += np.prod(np.clip(sides, 0, None), axis=1).sum()
    return volume


def _direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _geoms(model: Any, body: int) -> list[int]:
    """The collision shapes of a body and of all that hangs on it."""
    found = []
    for geom in range(model.ngeom):
        owner = model.geom_bodyid[geom]
        while owner not in (0, body):
            owner = model.body_parentid[owner]
        if owner == body and model.geom_group[geom] == 0:
            found.append(geom)
    return found


def _corners(model: Any, data: Any, geom: int) -> np.ndarray:
    """Corners of a shape, (N, 3), in the world; of a round one, those of the box around it."""
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start = model.mesh_vertadr[mesh]
        own = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
    else:
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
        own = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
    return own @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
