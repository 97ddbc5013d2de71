"""The views of a hand-eye problem about one guess, as straight lines: robust scores and steps to better guesses.

What the arm gets wrong is in where each view's board is: six numbers a view, "pose" here. Corner noise alone is in the
rest. A view whose pose is beyond BAR counts as bad on its own account, and costs BAR whatever it is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from calib.adjust import OUTLIER_CHANCE

Array = NDArray[np.float64]

WEAR = np.geomspace(1.0, 8.0, 19)
"""How many times as large as assumed the encoder noise may be."""
BAR = float(chi2.isf(OUTLIER_CHANCE, 6))

TWISTS = 12
"""The first unknowns, camera and board, have no prior."""
_REWEIGHTINGS = 8


@dataclass(frozen=True, eq=False)
class Linear:
    """All views about a world, in prior deviations of the unknowns; arrays over the views.

    ``rest`` (v,) and ``pose`` (v, 6) are the whitened residuals' squares outside of what moving the board does, and the
    residuals along it, turned so that encoder noise adds ``noise`` (v, 6) times the corners' variance to each.
    """

    rest: Array
    pose: Array
    noise: Array
    by_pose: Array  # (v, 6, unknowns)
    rest_gradient: Array  # (v, unknowns)
    rest_hessian: Array  # (v, unknowns, unknowns)
    values: Array  # (unknowns,)

    @staticmethod
    def of(
        views: Sequence[tuple[Array, Array, Array]],
        values: Array,
        sigmas: Array,
        sigma_px: float,
        encoder_sigma_rad: float,
    ) -> Linear:
        """Views as residuals (2 n,), derivatives by unknowns (2 n, unknowns) and by joints (2 n, moving).

        ``values`` (unknowns,) are in units of their prior deviations ``sigmas``, the derivatives are not yet.
        """
        rows = []
        for residuals, J, by_joint in views:
            r, J = residuals / sigma_px, J * sigmas / sigma_px
            Q = np.linalg.qr(J[:, :6])[0]
            B = Q.T @ by_joint * (encoder_sigma_rad / sigma_px)
            noise, V = np.linalg.eigh(B @ B.T)
            Q = Q @ V
            pose, by_pose = Q.T @ r, Q.T @ J
            r, J = r - Q @ pose, J - Q @ by_pose
            rows.append((r @ r, pose, np.maximum(noise, 0.0), by_pose, J.T @ r, J.T @ J))
        rest, pose, noise, by_pose, gradient, hessian = (np.array(column) for column in zip(*rows, strict=True))
        return Linear(rest, pose, noise, by_pose, gradient, hessian, values)

    def seen(self, mask: NDArray[np.bool_]) -> Linear:
        """Without the derivatives where ``mask`` (v, unknowns) is False."""
        return replace(
            self,
            by_pose=self.by_pose * mask[:, None],
            rest_gradient=self.rest_gradient * mask,
            rest_hessian=self.rest_hessian * mask[:, None] * mask[:, :, None],
        )

    def poses(self, wear: float, x: Array | None = None) -> Array:
        """(v,) each view's weighted squares along its pose, after a step x."""
        pose = self.pose if x is None else self.pose + self.by_pose @ x
        return np.asarray(np.sum(pose**2 / (1 + wear**2 * self.noise), axis=1), dtype=float)

    def score(self, x: Array | None = None) -> tuple[float, float]:
        """-2 ln likelihood and prior after a step x, up to a constant, and the wear that makes it least."""
        pose = self.pose if x is None else self.pose + self.by_pose @ x
        variance = 1 + WEAR[:, None, None] ** 2 * self.noise
        poses = np.minimum(np.sum(pose**2 / variance, axis=2), BAR)
        by_wear = np.sum(np.log(variance), axis=(1, 2)) + np.sum(poses, axis=1)
        best = int(np.argmin(by_wear))
        rest, values = float(np.sum(self.rest)), self.values
        if x is not None:
            rest += float(np.sum(2 * self.rest_gradient @ x + np.einsum("i,vij,j->v", x, self.rest_hessian, x)))
            values = values + x
        return float(by_wear[best]) + rest + float(np.sum(values[TWISTS:] ** 2)), float(WEAR[best])

    def tight(self) -> float:
        """By how much the score would be worse for an arm that is as good as assumed."""
        variance = 1 + self.noise
        alone = np.log(variance).sum() + np.minimum(np.sum(self.pose**2 / variance, axis=1), BAR).sum()
        rest = float(np.sum(self.rest) + np.sum(self.values[TWISTS:] ** 2))
        return float(alone) + rest - self.score()[0]

    def information(self, wear: float, weights: Array) -> Array:
        """(unknowns, unknowns) of the views, each with its weight, and of the prior.

        Camera and board have none: what they get here (a radian, a metre) only keeps this regular, and damps a step.
        """
        by_pose = self.by_pose * np.sqrt(weights[:, None] / (1 + wear**2 * self.noise))[:, :, None]
        H = np.einsum("vki,vkj->ij", by_pose, by_pose) + np.einsum("v,vij->ij", weights, self.rest_hessian)
        return H + np.eye(len(H))

    def noise_information(self, wear: float, weights: Array) -> tuple[Array, Array]:
        """(unknowns, unknowns) each: covariance of what pulls at the unknowns, by corner and by encoder noise.

        Their sum is ``information`` without the prior.
        """
        variance, noise = 1 + wear**2 * self.noise, wear**2 * self.noise
        by_corners, by_encoders = (self.by_pose * (np.sqrt(share) / variance)[:, :, None] for share in (1.0, noise))
        corners = np.einsum("v,vki,vkj->ij", weights, by_corners, by_corners)
        corners += np.einsum("v,vij->ij", weights, self.rest_hessian)
        return corners, np.einsum("v,vki,vkj->ij", weights, by_encoders, by_encoders)

    def pulled(self, free: NDArray[np.int64], x: Array | None = None, weights: Array | None = None) -> Array:
        """(unknowns,) least squares over the ``free`` ones, views weighted, the wear being that of after a step x."""
        weights = np.ones(len(self.rest)) if weights is None else weights
        wear = self.score(x)[1]
        H = self.information(wear, weights)[np.ix_(free, free)]
        pull = self.pose / (1 + wear**2 * self.noise)
        g = weights @ (np.einsum("vki,vk->vi", self.by_pose, pull) + self.rest_gradient)
        g[TWISTS:] += self.values[TWISTS:]
        found = np.zeros(len(self.values))
        found[free] = -np.linalg.solve(H, g[free])
        return found

    def step(self, free: NDArray[np.int64]) -> Array:
        """(unknowns,) the step of the ``free`` ones to the least score, as far as straight lines tell.

        By reweighting, from the views as they are now and from all alike: the better of both ends.
        """
        best, best_x = np.inf, np.zeros(len(self.values))
        for x in (np.zeros(len(self.values)), self.pulled(free)):
            for _ in range(_REWEIGHTINGS):
                score, wear = self.score(x)
                if score > best - 1e-3:
                    break
                best, best_x = score, x
                # beyond the bar a view pulls less the further off it is
                weights = np.minimum(1.0, (BAR / np.maximum(self.poses(wear, x), 1e-9)) ** 2)
                x = self.pulled(free, x, weights)
        return best_x
