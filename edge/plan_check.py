"""A plan is looked at before it starts: what breaks one of the robot file's limits is refused by that limit's name.

For every pose of the plan, and for every limit, there is a *room*: how far the pose is from breaking it (metres or
radians, negative beyond it). Rooms start below zero where the arm already is where it should not be: folded at rest
on a table that stands higher than was thought, a count beyond a joint's limit. Such a plan may only get better:

    room[k] >= min(0, max(room[0..k]) - slack)

so that an arm can always be brought out of where it is, and never back in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.errors import UserError
from drivers.robot import Robot

Array = NDArray[np.float64]

STEP_RAD = 0.02  # no joint moves more between two poses looked at; by one joint an SO-101's fingers move 9 mm then
_SLACK = 0.001  # metres or radians: what a servo's counts and sag make of standing still
_ROUNDING = 1e-6
_NEAR_M = 0.010  # distances above are of no interest
_SOLID_M = 0.5  # half thickness of the table
_ADVICE = "ask for another place, or plan again from where the arm is"


class LimitError(UserError):
    """A plan that breaks a limit. Nothing moved.

    Attributes:
        limit: its name: "joint limit of elbow_flex", "workspace", "keep-out lamp", "table",
            "self-collision of upper_arm and gripper".
        sample: of the plan, the first that breaks it or that the arm is on its way to when it does.
    """

    def __init__(self, limit: str, sample: int, message: str) -> None:
        super().__init__(message)
        self.limit, self.sample = limit, sample


@dataclass(frozen=True)
class _Limit:
    """One column of rooms: its name, what breaking it is in words with a place for the amount, and what to do."""

    name: str
    breach: str
    advice: str
    unit: str = "mm"

    def told(self, shortfall: float) -> str:
        return self.breach.format(f"{shortfall:.3f} rad" if self.unit == "rad" else f"{shortfall * 1e3:.1f} mm")


@dataclass(frozen=True)
class _Pair:
    """Two geoms that must not overlap."""

    a: int
    b: int
    limit: _Limit


class PlanChecker:
    """Joint limits, workspace, keep-out boxes, table and the arm itself, for plans of one robot.

    Geoms are those of the model that collide with anything (contype or conaffinity), held against each other by
    ``mj_geomDistance``; the table and the keep-out boxes are geoms added to it. The world frame of the model is the
    base frame. Two bodies are held against each other unless they are one rigid part, or parent and child, or the
    model excludes their contact. Of those that are, pairs of geoms are measured once, in the zero, the rest and the
    ready pose: one that touches in any of them, within a millimetre, touches by construction and is left out. (The
    SO-101 rests with its lower arm on its shoulder's servo: that pair is left out, the rest of the shoulder is not.)

    Not thread-safe: it holds one MuJoCo state.

    Raises:
        UserError: the model cannot be read or has no site named ``tool``.
    """

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        safety = robot.safety
        boxes = {f"_keep_out_{name}": box for name, box in safety.keep_out.items()}
        try:
            spec = mujoco.MjSpec.from_file(str(robot.model))
            solid = mujoco.mjtGeom.mjGEOM_BOX
            spec.worldbody.add_geom(name="_table", type=solid, pos=[0, 0, -_SOLID_M], size=[3.0, 3.0, _SOLID_M])
            for name, box in boxes.items():
                low, high = np.array(box.lower_m), np.array(box.upper_m)
                spec.worldbody.add_geom(name=name, type=solid, pos=(low + high) / 2, size=(high - low) / 2)
            self._model = spec.compile()
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{robot.model}: cannot be used as a robot model: {reason}") from None
        model = self._model
        self._tool = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "tool")
        if self._tool < 0:
            raise UserError(f"{robot.model}: the robot model has no site named 'tool'; mark the tool's tip with one")
        self._data = mujoco.MjData(model)
        self._qpos = model.jnt_qposadr[[model.joint(name).id for name in robot.joint_names]]
        self._table = model.geom("_table").id
        added = {self._table, *(model.geom(name).id for name in boxes)}
        collides = (model.geom_contype | model.geom_conaffinity) != 0
        solids = [g for g in range(model.ngeom) if collides[g] and g not in added]
        moving = [g for g in solids if model.body_weldid[model.geom_bodyid[g]] != 0]
        self._pairs = [_Pair(self._table, g, self._table_limit(g)) for g in moving]
        for name in safety.keep_out:
            box_id = model.geom(f"_keep_out_{name}").id
            self._pairs += [_Pair(box_id, g, self._keep_out_limit(name, g)) for g in moving]
        self._n_boxes = len(self._pairs)
        self._pairs += self._self_pairs(solids)
        self._ids = np.array([(pair.a, pair.b) for pair in self._pairs], dtype=int).reshape(-1, 2)
        self._limits = self._joint_limits() + self._workspace_limits() + [pair.limit for pair in self._pairs]

    def check(self, position_rad: ArrayLike, *, table_z_m: float | None = None) -> None:
        """Return if the plan keeps every limit.

        Args:
            position_rad: (n, joints) setpoints in the order of ``robot.joint_names``, evenly spaced in time; straight
                lines between them.
            table_z_m: height of the table in the base frame where it is known better than the robot file says.

        Raises:
            LimitError: it breaks one. Of several it names the one that is broken first.
            UserError: it is no plan: not (n, joints), or not finite.
        """
        plan = np.asarray(position_rad, dtype=float)
        joints = len(self.robot.joint_names)
        if plan.ndim != 2 or plan.shape[1] != joints or not len(plan):
            raise UserError(f"plan: is {plan.shape}, expected (samples, {joints}) joint angles; nothing moved")
        if not np.isfinite(plan).all():
            sample, joint = (int(i) for i in np.argwhere(~np.isfinite(plan))[0])
            raise UserError(
                f"plan: {self.robot.joint_names[joint]} is {plan[sample, joint]} at sample {sample} of {len(plan)}, "
                "expected radians; nothing moved"
            )
        table_z_m = self.robot.safety.table_z_m if table_z_m is None else float(table_z_m)
        poses, samples = _between(plan)
        rooms = np.hstack([self._joint_rooms(poses), *self._cartesian_rooms(poses, table_z_m)])
        allowed = np.minimum(0.0, np.maximum.accumulate(rooms, axis=0) - _SLACK)
        broken = rooms < allowed - _ROUNDING
        if not broken.any():
            return
        pose = int(broken.any(axis=1).argmax())
        limit = self._limits[int(broken[pose].argmax())]
        columns = [i for i, other in enumerate(self._limits) if other.name == limit.name]
        shortfall = -float(rooms[pose:, columns].min())
        worst = self._limits[columns[int(rooms[pose:, columns].min(axis=0).argmin())]]
        sample = int(samples[pose])
        share = sample / max(len(plan) - 1, 1)
        raise LimitError(
            limit.name,
            sample,
            f"plan: {worst.told(shortfall)} ({limit.name}), first at {share:.0%} of the way (sample {sample} of "
            f"{len(plan)}); nothing moved; {limit.advice}",
        )

    # Limits

    def _joint_limits(self) -> list[_Limit]:
        """Lower limits of all joints, then upper ones."""
        return [
            _Limit(f"joint limit of {name}", f"{name} would turn {{}} beyond {bound:.3f} rad", _ADVICE, "rad")
            for bounds in (self.robot.lower_rad, self.robot.upper_rad)
            for name, bound in zip(self.robot.joint_names, bounds, strict=True)
        ]

    def _workspace_limits(self) -> list[_Limit]:
        """Lower faces x, y, z, then upper ones."""
        box = self.robot.safety.workspace
        advice = f"ask for a place inside, or correct safety.workspace in {self.robot.path}"
        return [
            _Limit("workspace", f"the tool's tip would go {{}} beyond {axis} = {bound:.3f} m", advice)
            for bounds in (box.lower_m, box.upper_m)
            for axis, bound in zip("xyz", bounds, strict=True)
        ]

    def _table_limit(self, geom: int) -> _Limit:
        advice = f"ask for a higher grasp, or correct safety.table_z_m in {self.robot.path}"
        return _Limit("table", f"the {self._body(geom)} would go {{}} into the table", advice)

    def _keep_out_limit(self, name: str, geom: int) -> _Limit:
        advice = f"ask for another place, or correct safety.keep_out.{name} in {self.robot.path}"
        return _Limit(f"keep-out {name}", f"the {self._body(geom)} would come {{}} into {name}", advice)

    def _self_pairs(self, solids: list[int]) -> list[_Pair]:
        """What may run into each other, by the model's geometry in the zero, rest and ready pose."""
        model, robot = self._model, self.robot
        excluded = {(int(pair) >> 16, int(pair) & 0xFFFF) for pair in model.exclude_signature}
        pairs = []
        for a, b in itertools.combinations(solids, 2):
            part_a, part_b = (int(model.body_weldid[model.geom_bodyid[g]]) for g in (a, b))
            parents = [int(model.body_weldid[model.body_parentid[part]]) for part in (part_a, part_b)]
            bodies = tuple(sorted((int(model.geom_bodyid[a]), int(model.geom_bodyid[b]))))
            if part_a == part_b or part_a == parents[1] or part_b == parents[0]:
                continue
            if bodies not in excluded and bodies[::-1] not in excluded:
                pairs.append((a, b))
        known = []
        for pose in (np.zeros(len(robot.joint_names)), robot.rest_rad, robot.ready_rad):
            self._set(pose)
            known.append([mujoco.mj_geomDistance(model, self._data, a, b, _NEAR_M, None) for a, b in pairs])
        nearest_m = np.array(known).min(axis=0)
        kept = []
        for a, b in (pair for pair, distance_m in zip(pairs, nearest_m, strict=True) if distance_m > _SLACK):
            names = f"{self._body(a)} and {self._body(b)}"
            limit = _Limit(f"self-collision of {names}", f"{names} would run {{}} into each other", _ADVICE)
            kept.append(_Pair(a, b, limit))
        return kept

    def _body(self, geom: int) -> str:
        body = int(self._model.geom_bodyid[geom])
        return self._model.body(body).name or f"body {body}"

    # Rooms

    def _joint_rooms(self, poses: Array) -> Array:
        """(m, 2 joints) radians."""
        return np.hstack([poses - self.robot.lower_rad, self.robot.upper_rad - poses])

    def _cartesian_rooms(self, poses: Array, table_z_m: float) -> tuple[Array, Array]:
        """(m, 6) of the tool's tip and (m, pairs), metres; infinite for a pair that is not near."""
        model, data = self._model, self._data
        model.geom_pos[self._table, 2] = table_z_m - _SOLID_M
        tips, centres = np.empty((len(poses), 3)), np.empty((len(poses), model.ngeom, 3))
        for k, pose in enumerate(poses):
            self._set(pose)
            tips[k], centres[k] = data.site_xpos[self._tool], data.geom_xpos
        box = self.robot.safety.workspace
        workspace = np.hstack([tips - box.lower_m, box.upper_m - tips])
        rooms = np.full((len(poses), len(self._pairs)), np.inf)
        near = self._near(centres)
        for row in np.flatnonzero(near.any(axis=1)):
            self._set(poses[row])
            for column in np.flatnonzero(near[row]):
                pair = self._pairs[column]
                rooms[row, column] = mujoco.mj_geomDistance(model, data, pair.a, pair.b, _NEAR_M, None)
        return workspace, rooms

    def _near(self, centres: Array) -> NDArray[np.bool_]:
        """(m, pairs) which pairs may be nearer than ``_NEAR_M``, by their bounding spheres around (m, geoms, 3)."""
        a, b = self._ids.T
        radius = self._model.geom_rbound
        between = np.abs(centres[:, a] - centres[:, b])
        between[:, : self._n_boxes] -= self._model.geom_size[a[: self._n_boxes]]  # to the box itself
        np.maximum(between, 0.0, out=between)
        reach = radius[b] + _NEAR_M
        reach[self._n_boxes :] += radius[a[self._n_boxes :]]
        return np.einsum("kpi,kpi->kp", between, between) < reach**2

    def _set(self, pose: Array) -> None:
        self._data.qpos[self._qpos] = pose
        mujoco.mj_kinematics(self._model, self._data)


def _between(plan: Array) -> tuple[Array, NDArray[np.int64]]:
    """Poses (m, joints) of a plan (n, joints) no more than ``STEP_RAD`` apart, and the sample each one leads to (m,).

    All samples are among them, but those that only stand still.
    """
    steps = np.diff(plan, axis=0)
    counts = np.ceil(np.abs(steps).max(axis=1, initial=0.0) / STEP_RAD).astype(int)
    before = np.repeat(np.arange(len(steps)), counts)
    nth = np.arange(len(before)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    share = nth / counts[before]
    poses = np.where((share == 1.0)[:, None], plan[before + 1], plan[before] + share[:, None] * steps[before])
    return np.vstack([plan[:1], poses]), np.append(0, before + 1)
