"""A camera without OpenGL: MuJoCo's ray caster gives geom, distance and normal; this shades them."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from drivers.sim.scene import Look

CAMERA = Intrinsics(width=640, height=480, fx=800.0, fy=800.0, cx=319.5, cy=239.5)


@dataclass(frozen=True)
class Picture:
    """``rgb`` (h, w, 3) uint8; ``depth_m`` (h, w) float32 along the optical axis, 0 where nothing is hit;
    ``geom`` (h, w) int32, -1 where nothing is hit."""

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    geom: NDArray[np.int32]


def scaled(intrinsics: Intrinsics, width: int, height: int) -> Intrinsics:
    """The same camera read out at another size (pixel centres at integers)."""
    sx, sy = width / intrinsics.width, height / intrinsics.height
    return Intrinsics(
        width,
        height,
        intrinsics.fx * sx,
        intrinsics.fy * sy,
        (intrinsics.cx + 0.5) * sx - 0.5,
        (intrinsics.cy + 0.5) * sy - 0.5,
        intrinsics.distortion,
    )


def visible_corners(seen: NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """Around the pixels of a mask (h, w): left, top, right, bottom, normalized to [0, 1]; None where it has none."""
    (height_px, width_px), (v, u) = seen.shape, np.nonzero(seen)
    if not len(u):
        return None
    left, right = u.min() / width_px, (u.max() + 1) / width_px
    top, bottom = v.min() / height_px, (v.max() + 1) / height_px
    return float(left), float(top), float(right), float(bottom)


def look_at(eye_m: NDArray[np.float64], target_m: NDArray[np.float64], roll_rad: float = 0.0) -> NDArray[np.float64]:
    """``T_world_camera`` (4, 4): optical frame (x right, y down, z forward) at ``eye_m``, looking at ``target_m``."""
    z = np.asarray(target_m, float) - np.asarray(eye_m, float)
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    T = np.eye(4)
    T[:3, 0], T[:3, 1], T[:3, 2], T[:3, 3] = c * x + s * y, -s * x + c * y, z, eye_m
    return T


def camera_pose(look: Look) -> NDArray[np.float64]:
    """The true ``T_base_camera`` of a scene's camera: for labels and judges, never for the runtime."""
    return look_at(np.array(look.camera_m), np.array(look.camera_target_m), look.camera_roll_rad)


def render(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    look: Look,
    T_world_camera: NDArray[np.float64],
    intrinsics: Intrinsics,
    rng: np.random.Generator,
    board_texture: NDArray[np.uint8] | None = None,
) -> Picture:
    """One image of ``data`` (kinematics up to date), edges and the board sampled four times a pixel.

    Args:
        board_texture: (h, w) grey image stretched over the +z face of the geom ``board``, x to the right, y down.
    """
    w, h = intrinsics.width, intrinsics.height
    u, v = np.meshgrid(np.arange(w, dtype=float), np.arange(h, dtype=float))
    rays = np.stack([(u - intrinsics.cx) / intrinsics.fx, (v - intrinsics.cy) / intrinsics.fy, np.ones_like(u)], -1)
    shader = _Shader(model, data, look, T_world_camera, board_texture)
    colour, z, geom = shader.shoot(rays.reshape(-1, 3))
    geom2 = geom.reshape(h, w)
    edge = np.zeros((h, w), bool)
    edge[:, 1:] |= geom2[:, 1:] != geom2[:, :-1]
    edge[:, :-1] |= edge[:, 1:]
    edge[1:] |= geom2[1:] != geom2[:-1]
    edge[:-1] |= edge[1:]
    if board_texture is not None:
        edge |= geom2 == model.geom("board").id
    where = np.flatnonzero(edge.ravel())
    if len(where):
        offsets = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
        sub = np.repeat(rays.reshape(-1, 3)[where], 4, axis=0)
        sub[:, :2] += np.tile(offsets / [intrinsics.fx, intrinsics.fy], (len(where), 1))
        colour[where] = shader.shoot(sub)[0].reshape(-1, 4, 3).mean(1)
    img = colour.reshape(h, w, 3) * np.asarray(look.gain, np.float32)
    img += rng.standard_normal((h, w, 1), np.float32) * look.noise
    img += rng.standard_normal((h, w, 3), np.float32) * (look.noise * 0.5)
    rgb = np.clip(img * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Picture(rgb, z.reshape(h, w), geom2)


class _Shader:
    """Casts rays from one camera and gives their colour: Lambert, a shadowed light, textured table and board."""

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        look: Look,
        T_world_camera: NDArray[np.float64],
        board_texture: NDArray[np.uint8] | None,
    ):
        self.model, self.data, self.look = model, data, look
        self.T = T_world_camera
        self.light = np.array(look.light_m)
        self.board = board_texture
        self.table_id = model.geom("table").id
        self.board_id = model.geom("board").id if board_texture is not None else -2
        self.rgba = np.vstack([model.geom_rgba[:, :3], [0.55, 0.58, 0.62]]).astype(np.float32)

    def shoot(self, rays: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """(n, 3) camera-frame rays with z = 1 -> colours (n, 3), depth along the axis (n,), geom (n,)."""
        n = len(rays)
        vec = rays @ self.T[:3, :3].T
        geom, dist, normal = self._cast(self.T[:3, 3], vec)
        hit = geom >= 0
        point = self.T[:3, 3] + vec * np.where(hit, dist, 0.0)[:, None]
        colour = self.rgba[geom].copy()
        table = np.flatnonzero(geom == self.table_id)
        if len(table):
            colour[table] = _table_colour(self.look, point[table, 0], point[table, 1])
        if self.board is not None:
            on = np.flatnonzero(geom == self.board_id)
            if len(on):
                colour[on] = self._board_colour(point[on])
        to_light = self.light - point
        length = np.sqrt(np.einsum("ij,ij->i", to_light, to_light))
        lambert = np.clip(np.einsum("ij,ij->i", normal, to_light) / length, 0, 1)
        lambert *= ~self._shadow(point, length)
        light = self.look.ambient + self.look.diffuse * lambert
        light[~hit] = 1.0
        colour *= light.astype(np.float32)[:, None]
        depth = np.where(hit, dist, 0.0).astype(np.float32)  # rays have z = 1, so the distance factor is the depth
        return colour.reshape(n, 3), depth, geom

    def _cast(
        self, origin: NDArray[np.float64], vec: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        n = len(vec)
        geom = np.empty(n, np.int32)
        dist = np.empty(n)
        normal = np.zeros(3 * n)
        mujoco.mj_multiRay(
            self.model, self.data, origin, np.ascontiguousarray(vec).ravel(), None, True, -1, geom, dist, normal, n, 1e9
        )
        return geom, dist, normal.reshape(n, 3)

    def _shadow(self, point: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.bool_]:
        geom = np.empty(len(point), np.int32)
        dist = np.empty(len(point))
        vec = np.ascontiguousarray(point - self.light).ravel()
        mujoco.mj_multiRay(self.model, self.data, self.light, vec, None, True, -1, geom, dist, None, len(point), 1e9)
        return (geom >= 0) & ((1.0 - dist) * length > 0.003)

    def _board_colour(self, point: NDArray[np.float64]) -> NDArray[np.float32]:
        assert self.board is not None
        R = self.data.geom_xmat[self.board_id].reshape(3, 3)
        local = (point - self.data.geom_xpos[self.board_id]) @ R
        half = self.model.geom_size[self.board_id]
        h, w = self.board.shape
        u = np.clip((local[:, 0] / half[0] + 1) / 2 * w - 0.5, 0, w - 1.001)
        v = np.clip((1 - (local[:, 1] / half[1] + 1) / 2) * h - 0.5, 0, h - 1.001)
        face = np.abs(local[:, 2] - half[2]) < 1e-4
        i, j = u.astype(int), v.astype(int)
        a, b = u - i, v - j
        t = self.board.astype(np.float32)
        texel = (1 - b) * ((1 - a) * t[j, i] + a * t[j, i + 1]) + b * ((1 - a) * t[j + 1, i] + a * t[j + 1, i + 1])
        return np.where(face, texel / 255.0, 0.8).astype(np.float32)[:, None].repeat(3, 1)


def _table_colour(look: Look, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    c, s = np.cos(look.pattern_rad), np.sin(look.pattern_rad)
    a, b = (c * x + s * y) / look.pattern_m, (-s * x + c * y) / look.pattern_m
    if look.table == "wood":
        t = 0.5 + 0.5 * np.sin(6 * a + 1.5 * np.sin(0.7 * b) + 0.5 * np.sin(2.3 * b + a))
    elif look.table == "tiles":
        t = ((np.floor(a) + np.floor(b)) % 2).astype(float)
    elif look.table == "speckle":
        t = np.mod(np.sin(np.floor(a * 16) * 12.9898 + np.floor(b * 16) * 78.233) * 43758.5453, 1.0)
    else:
        t = np.zeros_like(a)
    one, two = np.array(look.table_rgb, np.float32), np.array(look.table_rgb2, np.float32)
    return one + t[:, None].astype(np.float32) * (two - one)
