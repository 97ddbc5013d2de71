"""``vlar1 calibrate camera`` and ``board``: pictures of a board in, intrinsics in a file out, or one line why not."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import calib.intrinsics
import edge.camera_calibration
from calib.board import CAMERA_BOARD, Board, Detection, T_gripper_board_nominal
from calib.calibration import CameraCalibration
from calib.file import load_calibration, load_camera, save_calibration
from calib.guidance import LEAST_VIEWS, WANTED, Coverage
from calib.kinematics import GripperKinematics
from calib.rigid import invert, rigid, rotation
from calib.routine import Observation, solve
from drivers.camera.folder import FolderCamera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, Intrinsics
from drivers.robot import load_robot
from edge import calibrate_board, calibrate_camera
from edge.board_guide import draw_guide
from edge.lens_plot import bend_px, plot_lens

TRUE = Intrinsics(640, 480, 575.0, 577.0, 326.0, 233.0, (-0.16, 0.06, 0.0008, -0.0006, 0.0))
LONGER = Intrinsics(640, 480, 1.03 * 575.0, 1.03 * 577.0, 326.0, 233.0, TRUE.distortion)


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    calibrate_camera.register(commands)
    calibrate_board.register(commands)
    args = parser.parse_args([str(argument) for argument in arguments])
    return int(args.func(args))


def pictures() -> list[np.ndarray]:
    """(480, 640) uint8 each: the printed board as a camera with `TRUE` sees it, lens and all, twice oversampled."""
    board, px_per_m, rng = CAMERA_BOARD, 4000.0, np.random.default_rng(0)
    x, y = np.meshgrid((np.arange(1280) + 0.5) / 2 - 0.5, (np.arange(960) + 0.5) / 2 - 0.5)
    px = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    until = (cv2.TERM_CRITERIA_COUNT, 12, 0.0)
    straight = cv2.undistortPoints(px, TRUE.matrix, np.array(TRUE.distortion), criteria=until)
    rays = np.concatenate([straight[:, 0], np.ones((len(px), 1))], axis=1)
    texture = board.image(px_per_m)
    found = []
    places = [(-0.26, -0.17), (0.0, -0.17), (0.26, -0.17), (-0.26, 0.17), (0.0, 0.17), (0.26, 0.17), (0.0, 0.0)]
    for i in range(2 * len(places)):
        depth_m = 0.42 + 0.03 * (i % 4)
        tilt = (0.5 if i % 2 else -0.5) * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]][i // 2 % 2])
        R = rotation(tilt) @ rotation([0.0, 0.0, 0.1 * (i % 5 - 2)])
        T = rigid(R, np.array([*places[i // 2], 1.0]) * depth_m - R @ board.centre_m)
        on_board = rays @ np.linalg.inv(T[:3][:, [0, 1, 3]]).T
        at = ((on_board[:, :2] / on_board[:, 2:] + board.margin_m) * px_per_m - 0.5).astype(np.float32)
        at = at.reshape(960, 1280, 2)
        fine = cv2.remap(texture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=90)
        image = 0.8 * cv2.resize(fine, (640, 480), interpolation=cv2.INTER_AREA).astype(float) + 15
        found.append(np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8))
    return found


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return pictures()


@pytest.fixture(scope="module")
def folder(images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(images):
        cv2.imwrite(str(path / f"{i}.png"), image)
    return path


def assert_is_true(found: Intrinsics, within_px: float = 3.0) -> None:
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), abs=within_px)
    assert found.distortion[0] == pytest.approx(-0.16, abs=0.02)


def test_a_folder_of_pictures_makes_a_calibration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "desk.yaml"
    assert run("camera", folder, "--out", out, "--square-mm", "30.3") == 0
    told = capsys.readouterr().out
    assert f"folder:{folder}: 640x480 px, 14 views" in told
    assert "on views left out of the fit" in told and "contradicts" not in told and "± " in told
    camera = load_camera(out)
    assert_is_true(camera.intrinsics)
    assert camera.source == "board" and camera.serial == f"folder:{folder}" and not camera.intrinsics.nominal
    assert camera.board is not None and camera.board.square_m == pytest.approx(0.0303)
    assert camera.reprojection_px is not None and camera.holdout_px is not None
    assert 0 < camera.reprojection_px <= camera.holdout_px < 0.25
    assert len(camera.sigma_px) == 4 and 0 < max(camera.sigma_px) < 2
    assert len(camera.views) == 14 and all(view.used and len(view.ids) >= 24 for view in camera.views)
    picture = cv2.imread(str(tmp_path / "desk.lens.png"))
    assert picture is not None and picture.shape[1] == 1200


def test_a_bad_result_is_kept_beside_unless_told_to_be_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calib.intrinsics, "MAX_HOLDOUT_PX", 0.01)
    out = tmp_path / "desk.yaml"
    with pytest.raises(UserError, match=r"off by 0\.\d\d px on views left out .* Not saved as .*desk\.yaml") as error:
        run("camera", folder, "--out", out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert_is_true(load_camera(tmp_path / "desk.rejected.yaml").intrinsics)
    save_calibration(CameraCalibration("2026-01-01", f"folder:{folder}", LONGER), out)  # the same camera's, of before
    assert run("camera", folder, "--out", out, "--force") == 0
    assert_is_true(load_camera(out).intrinsics)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--out", "desk.txt"), "--out desk.txt: expected a file that ends in .yaml"),
        (("--out", "nowhere/desk.yaml"), "there is no folder nowhere"),
        (("--out", "desk.yaml", "--square-mm", "3"), "--square-mm 3: the camera board has squares of 30 mm"),
        (("--out", "desk.yaml", "--square-mm", "nan"), "--square-mm nan: the camera board"),
        (("--out", "desk.yaml", "--check"), "assumed, not measured"),
        (
            ("--out", "desk.yaml", "--board", "hand-eye"),
            "0 views of the board, 8 are needed; the board was seen in 0 of 14",
        ),
        (("--out", "old.yaml"), "old.yaml is of camera 'another', this one is 'folder:"),
        (("--out", "damaged.yaml"), "damaged.yaml: schema: expected this field"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_calibration(CameraCalibration("2026-01-01", "another", TRUE), "old.yaml")
    Path("damaged.yaml").write_text("camera: {}\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        run("camera", folder, *arguments)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_picture_is_named_not_passed_over(images: list[np.ndarray], tmp_path: Path) -> None:
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), images[i])
    (tmp_path / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DeviceError, match=r"1\.png: is not a picture"):
        run("camera", tmp_path, "--out", tmp_path / "out.yaml")


def test_a_cameras_own_intrinsics_are_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = TRUE
    monkeypatch.setattr(edge.camera_calibration, "open_camera", lambda source: FolderCamera(Path(source), own))
    out = tmp_path / "desk.yaml"
    assert run("camera", folder, "--out", out, "--check") == 0
    assert "the camera's own intrinsics: good" in capsys.readouterr().out
    camera = load_camera(out)
    assert camera.source == "factory" and camera.intrinsics == TRUE and len(camera.views) == 14
    assert camera.holdout_px is not None and 0 < camera.holdout_px < 0.3
    own = LONGER
    wrong = tmp_path / "wrong.yaml"
    with pytest.raises(UserError, match=r"own intrinsics: off by \d+\.\d px .*: calibrate this camera instead"):
        run("camera", folder, "--out", wrong, "--check")
    assert not wrong.exists()
    assert load_camera(tmp_path / "wrong.rejected.yaml").intrinsics == LONGER


def test_a_hand_eye_calibration_in_the_file_is_solved_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made with intrinsics that are 3 % off; the camera's place comes right with the new ones."""
    robot, rng, board = load_robot(), np.random.default_rng(0), Board()
    fk = GripperKinematics(robot.model, robot.joint_names)
    z = np.array([0.21, 0.0, 0.02]) - [0.52, 0.0, 0.42]
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    T_base_camera = rigid(np.column_stack([x, np.cross(z, x), z]), [0.52, 0.0, 0.42])
    T_gripper_board = T_gripper_board_nominal(board)
    points_m, seen = board.corners_m(), []
    while len(seen) < 15:
        q = rng.uniform(robot.lower_rad, robot.upper_rad)
        q[-1] = 0.05
        T = invert(T_base_camera) @ fk(q) @ T_gripper_board
        px = cv2.projectPoints(points_m, rotation_vector(T), T[:3, 3], TRUE.matrix, np.array(TRUE.distortion))[0]
        px = px.reshape(-1, 2)
        in_front, faces = T[2, 3] > 0.2, T[:3, 2] @ T[:3, 3] > 0.75 * np.linalg.norm(T[:3, 3])
        if in_front and faces and (px > 5).all() and (px < [634, 474]).all():
            noisy = px + rng.normal(0, 0.1, px.shape)
            seen.append(Observation(q + rng.normal(0, 3e-4, 6), Detection(np.arange(len(px)), noisy)))
    serial, out = f"folder:{folder}", tmp_path / "desk.yaml"
    old, diagnosis = solve(seen, fk, board, CameraCalibration("2026-01-01", serial, LONGER), robot.name)
    save_calibration(old, out)

    assert run("camera", folder, "--out", out) == 0
    told = capsys.readouterr().out
    assert "hand-eye, solved again from its own views" in told and "the tip will miss by, mm" in told
    new = load_calibration(out)
    assert_is_true(new.camera.intrinsics)
    assert new.arm_name == robot.name and len(new.views) == 15 and new.date == old.date
    off_mm = [1e3 * np.linalg.norm(one.T_mount_camera[:3, 3] - T_base_camera[:3, 3]) for one in (old, new)]
    assert off_mm[1] < 3.0 < off_mm[0]

    other = tmp_path / "robot.yaml"
    text = robot.path.read_text().replace(f"name: {robot.name}", "name: another")
    other.write_text(text.replace(robot.model.name, str(robot.model)))
    before = out.read_bytes()
    with pytest.raises(UserError, match="of arm 'so101', .* is of 'another'; name that arm's robot file with --robot"):
        run("camera", folder, "--out", out, "--robot", other)
    assert out.read_bytes() == before

    # where the diagnosis finds it bad, the file stays, and the new intrinsics are not lost
    bad = (new, replace(diagnosis, bad=True, sentences=("The mount slipped.",)))
    monkeypatch.setattr(edge.camera_calibration, "solve", lambda *args, **options: bad)
    with pytest.raises(
        UserError, match=r"The mount slipped\. .* is left as it was; .* alone are in .*desk\.camera\.yaml"
    ):
        run("camera", folder, "--out", out)
    assert out.read_bytes() == before
    assert_is_true(load_camera(tmp_path / "desk.camera.yaml").intrinsics)


def rotation_vector(T: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.Rodrigues(T[:3, :3])[0])


class PlayedCamera:
    """A live camera: a script of pictures and errors, then Ctrl-C."""

    serial = "played"
    intrinsics = Intrinsics.assumed(640, 480)

    def __init__(self, script: list[np.ndarray | BaseException]) -> None:
        self.script = script
        self.closed = False

    def read(self) -> Frame:
        if not self.script:
            raise KeyboardInterrupt
        shown = self.script.pop(0)
        if isinstance(shown, BaseException):
            raise shown
        return Frame(np.repeat(shown[..., None], 3, axis=2), None, time.monotonic(), self.intrinsics, self.serial)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[np.ndarray | BaseException]], PlayedCamera]:
    def played(script: list[np.ndarray | BaseException]) -> PlayedCamera:
        camera = PlayedCamera(script)
        monkeypatch.setattr(edge.camera_calibration, "open_camera", lambda source: camera)
        return camera

    return played


@pytest.mark.parametrize("count", [14, 9])
def test_live_views_are_taken_when_the_board_rests(
    images: list[np.ndarray],
    play: Callable[..., PlayedCamera],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
) -> None:
    """All that is wanted is in the 14: it ends by itself, early. With 9, Ctrl-C ends it, and they are not lost."""
    script: list[np.ndarray | BaseException] = []
    for i, image in enumerate(images[:count]):
        if i == 3:
            script += [DeviceError("camera 0: is unplugged")] * 2
        if i == 5:  # carried through the picture: never at rest
            script += [np.roll(image, 4 * step, axis=1) for step in range(4)]
        script += [image] * 5
    camera = play(script)
    out = tmp_path / "desk.yaml"
    assert run("camera", "opencv:0", "--out", out) == 0
    assert camera.closed and bool(script) == (count == 14)
    found = load_camera(out)
    assert found.serial == "played" and len(found.views) == {14: LEAST_VIEWS, 9: 9}[count]
    assert_is_true(found.intrinsics, within_px=5.0)
    missing = " % covered: where the board was not seen, the lens is known less well"
    assert (missing in capsys.readouterr().out) == (count == 9)


def test_a_board_that_is_never_at_rest_or_never_seen_is_said(
    images: list[np.ndarray], play: Callable[..., PlayedCamera], tmp_path: Path
) -> None:
    camera = play([images[i % 3] for i in range(9)] + [np.full((480, 640), 90, np.uint8)])
    with pytest.raises(UserError, match="of 10 frames, 9 showed the board and in 0 it was still") as error:
        run("camera", "opencv:0", "--out", tmp_path / "desk.yaml")
    assert "\n" not in str(error.value) and "0 views of the board, 8 are needed" in str(error.value)
    assert camera.closed and not list(tmp_path.iterdir())


def test_q_on_the_keyboard_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    master, slave = os.openpty()

    class Typing(PlayedCamera):
        def read(self) -> Frame:
            os.write(master, b"x" if len(self.script) > 3 else b"q")  # other keys do nothing
            return super().read()

    camera = Typing([np.full((480, 640), 90, np.uint8)] * 5)
    monkeypatch.setattr(edge.camera_calibration, "open_camera", lambda source: camera)
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(UserError, match="of . frames, 0 showed the board"):
            run("camera", "opencv:0", "--out", tmp_path / "desk.yaml")
    os.close(master)
    assert camera.closed and 0 < len(camera.script) < 3


def test_a_video_ends_and_is_calibrated_from_what_it_showed_at_rest(images: list[np.ndarray], tmp_path: Path) -> None:
    video = tmp_path / "board.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (640, 480))
    for image in images[:10]:
        for _ in range(5):
            writer.write(np.repeat(image[..., None], 3, axis=2))
    writer.release()
    out = tmp_path / "desk.yaml"
    assert run("camera", video, "--out", out) == 0
    assert_is_true(load_camera(out).intrinsics, within_px=5.0)


@pytest.mark.parametrize("use", ["camera", "hand-eye"])
@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_the_board_to_print_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], use: str, paper: str
) -> None:
    out = tmp_path / "board.pdf"
    assert run("board", "--out", out, "--for", use, "--paper", paper) == 0
    pdf = out.read_bytes()
    assert pdf.startswith(b"%PDF-") and (b"30 mm" if use == "camera" else b"24 mm") in pdf
    assert "print at 100 %" in capsys.readouterr().out


def test_the_guide_is_drawn_over_the_picture(images: list[np.ndarray]) -> None:
    rgb = np.repeat(images[0][..., None], 3, axis=2)
    detection = CAMERA_BOARD.detect(rgb)
    assert detection is not None
    coverage = Coverage(CAMERA_BOARD, TRUE)
    coverage.cell_views[0, 0] = WANTED
    before = rgb.copy()
    picture = draw_guide(rgb, coverage, detection, "hold it still").astype(int)
    assert (rgb == before).all()
    change = picture - rgb
    covered, missing = change[60:110, 20:110].mean(axis=(0, 1)), change[380:460, 400:500].mean(axis=(0, 1))
    assert covered[1] > covered[0] + 10  # greener than red
    assert missing[0] > missing[1] + 10
    x, y = np.rint(detection.corners_px[0]).astype(int)
    assert (picture[y, x] == (64, 224, 255)).all()


def test_the_lens_is_drawn_as_it_bends() -> None:
    points = np.array([[20.0, 30.0], [326.0, 233.0], [600.0, 400.0]])
    bend = bend_px(points, TRUE)
    ideal = (points - bend - [TRUE.cx, TRUE.cy]) / [TRUE.fx, TRUE.fy]
    again = cv2.projectPoints(
        np.column_stack([ideal, np.ones(3)]), np.zeros(3), np.zeros(3), TRUE.matrix, np.array(TRUE.distortion)
    )[0].reshape(-1, 2)
    np.testing.assert_allclose(again, points, atol=1e-3)  # the lens brings what is straight to where it is seen
    assert np.linalg.norm(bend[0]) > 10 and np.linalg.norm(bend[1]) < 0.01
    straight = Intrinsics(640, 480, 575.0, 577.0, 326.0, 233.0)
    assert (bend_px(points, straight) == 0).all()

    corners, residuals = np.array([[320.0, 240.0]]), np.array([[1.0, 0.0]])
    picture = plot_lens(straight, [corners], [residuals])
    red = (picture[:900, :, 0].astype(int) - picture[:900, :, 2] > 100).nonzero()
    scale = 1200 / 640
    assert red[1].min() == pytest.approx(320.5 * scale, abs=3)
    assert red[1].max() == pytest.approx(370.5 * scale, abs=3)  # fifty times as long
    blue = [(one[:900, :, 2].astype(int) - one[:900, :, 0] > 30).sum() for one in (picture, plot_lens(TRUE, [], []))]
    assert blue[1] > 1000 > 100 > blue[0]
