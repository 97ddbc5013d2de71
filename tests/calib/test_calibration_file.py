"""The calibration file: it comes back as saved, refuses what it is not for, and is never half written."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from calib_views import VGA, transform
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calib.board import Board
from calib.calibration import BoardView, Calibration, CameraCalibration, Reference, View
from calib.file import load_calibration, load_camera, rejected_path, save_calibration
from drivers.errors import UserError
from drivers.protocols import Intrinsics


def intrinsics(**changes) -> CameraCalibration:
    seen = BoardView(np.array([0, 1, 2, 5, 6, 7]), np.arange(12.0).reshape(6, 2) * 31.5, 0.17, False)
    camera = CameraCalibration(
        date="2025-11-20T06:00:00+00:00",
        serial="cam-1",
        intrinsics=dataclasses.replace(VGA, distortion=(0.1, -0.2, 0.0, 0.0, 1e-5)),
        source="board",
        board=Board(squares_x=8, squares_y=6),
        reprojection_px=0.2,
        holdout_px=0.22,
        sigma_px=(0.5, 0.5, 0.3, 0.2),
        views=(seen, dataclasses.replace(seen, used=True)),
    )
    return dataclasses.replace(camera, **changes)


def make(**changes) -> Calibration:
    view = View(
        joints_rad=np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.05]),
        ids=np.array([0, 3, 4, 7, 9, 11]),
        corners_px=np.arange(12.0).reshape(6, 2) * 7.25,
        reprojection_px=0.21,
        leave_one_out_mm=0.8,
    )
    calibration = Calibration(
        date="2025-11-20T06:30:00+00:00",
        arm_name="so101",
        camera=intrinsics(),
        board=Board(),
        mount="base",
        T_mount_camera=transform((0.3, -2.0, 0.4), (0.52, 0.01, 0.42)),
        T_other_board=transform((1.2, -1.1, 1.3), (-0.006, 0.05, -0.15)),
        reprojection_px=0.25,
        leave_one_out_mm=0.9,
        views=(view, view),
    )
    return dataclasses.replace(calibration, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.yaml"
    save_calibration(make(), path)
    return path


reals = st.floats(-3.0, 3.0)
names = st.text(min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@example(  # a YAML line end
    serial="0", arm="\x85", mount="base", turn=(0, 0, 0), shift=(0, 0, 0), focal=1.0, distortion=[], views=[]
)
@given(
    mount=st.sampled_from(["base", "gripper"]),
    serial=names,
    arm=names,
    turn=st.tuples(reals, reals, reals),
    shift=st.tuples(reals, reals, reals),
    focal=st.floats(1.0, 1e4),
    distortion=st.sampled_from([0, 4, 5, 8]).flatmap(lambda n: st.lists(reals, min_size=n, max_size=n)),
    views=st.lists(
        st.tuples(
            st.lists(st.floats(-3.2, 3.2), min_size=6, max_size=6),
            st.lists(st.tuples(st.integers(0, 11), st.floats(0, 4000), st.floats(0, 4000)), unique_by=lambda c: c[0]),
        ),
        max_size=4,
    ),
)
def test_comes_back_as_saved(serial, arm, mount, turn, shift, focal, distortion, views):
    calibration = make(
        camera=intrinsics(
            serial=serial, intrinsics=Intrinsics(640, 480, focal, focal / 3, 320.1, 239.9, tuple(distortion))
        ),
        arm_name=arm,
        mount=mount,
        T_mount_camera=transform(turn, shift),
        views=tuple(
            View(
                np.array(joints),
                np.array([c[0] for c in corners], dtype=np.int64),
                np.array([c[1:] for c in corners], dtype=float).reshape(-1, 2),
                0.5,
                1.5,
                np.linspace(0.4, 0.6, len(corners)) if len(corners) % 2 else None,
            )
            for joints, corners in views
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        save_calibration(calibration, path)
        back = load_calibration(path)
        assert load_camera(path).intrinsics == calibration.camera.intrinsics
    for field in ("date", "arm_name", "mount", "board", "reprojection_px", "leave_one_out_mm", "depth_scale"):
        assert getattr(back, field) == getattr(calibration, field)
    for field in ("date", "serial", "intrinsics", "source", "board", "reprojection_px", "holdout_px", "sigma_px"):
        assert getattr(back.camera, field) == getattr(calibration.camera, field)
    np.testing.assert_array_equal(back.T_mount_camera, calibration.T_mount_camera)
    np.testing.assert_array_equal(back.T_other_board, calibration.T_other_board)
    for a, b in zip(back.camera.views, calibration.camera.views, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.corners_px, b.corners_px)
        assert (a.reprojection_px, a.used) == (b.reprojection_px, b.used)
    assert len(back.views) == len(calibration.views)
    for ours, theirs in zip(back.views, calibration.views, strict=True):
        np.testing.assert_allclose(ours.joints_rad, theirs.joints_rad, atol=1e-6)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.corners_px, theirs.corners_px, atol=1e-3)
        assert (ours.reprojection_px, ours.leave_one_out_mm) == (theirs.reprojection_px, theirs.leave_one_out_mm)
        assert (ours.depth_m is None) == (theirs.depth_m is None)
        if theirs.depth_m is not None:
            np.testing.assert_allclose(ours.depth_m, theirs.depth_m, atol=1e-5)


def test_zeros_outliers_and_expected_errors_come_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    calibration = make(
        joint_zeros_rad=(0.0, 0.021, -0.013, 0.004, 0.0, 0.0),
        outliers=(1,),
        expected_mm=0.62,
        expected_reach_mm=0.98,
        covariance=rng.normal(size=(6, 6)) * 1e-7,
        point_covariance_m2=rng.normal(size=(3, 3)) * 1e-7,
    )
    save_calibration(calibration, tmp_path / "c.yaml")
    back = load_calibration(tmp_path / "c.yaml")
    for field in ("joint_zeros_rad", "outliers", "expected_mm", "expected_reach_mm"):
        assert getattr(back, field) == getattr(calibration, field)
    np.testing.assert_array_equal(back.covariance, calibration.covariance)
    np.testing.assert_array_equal(back.point_covariance_m2, calibration.point_covariance_m2)


def test_the_reference_picture_comes_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    depth_m = rng.uniform(0.3, 0.9, (120, 160)).astype(np.float32)
    depth_m[:10] = 0.0
    reference = Reference(np.array([0.1, -1.2, 0.6, 0.6, 0.0, 0.05]), rgb, depth_m)
    sentences = ("the arm's zeros were off", "nothing else: 0.4 mm")
    save_calibration(make(reference=reference, depth_scale=1.012, diagnosis=sentences), tmp_path / "c.yaml")
    back = load_calibration(tmp_path / "c.yaml")
    assert back.diagnosis == sentences and back.depth_scale == 1.012 and back.reference is not None
    np.testing.assert_array_equal(back.reference.joints_rad, reference.joints_rad)
    np.testing.assert_allclose(back.reference.depth_m, depth_m, atol=2.6e-4)
    assert np.abs(back.reference.rgb.astype(float) - rgb).mean() < 4.0
    save_calibration(make(reference=dataclasses.replace(reference, depth_m=None)), tmp_path / "c.yaml")
    assert load_calibration(tmp_path / "c.yaml").reference.depth_m is None


def test_intrinsics_make_a_file_that_the_hand_eye_part_joins(tmp_path: Path):
    path = tmp_path / "c.yaml"
    save_calibration(intrinsics(), path)
    assert load_camera(path).sigma_px == (0.5, 0.5, 0.3, 0.2)
    with pytest.raises(UserError, match="has intrinsics only; `vlar1 calibrate hand-eye`"):
        load_calibration(path)
    save_calibration(make(), path)
    assert load_calibration(path).arm_name == "so101"
    with pytest.raises(UserError, match="has a hand-eye calibration that these intrinsics would undo"):
        save_calibration(intrinsics(), path)


def test_what_was_rejected_before_is_not_overwritten(tmp_path: Path):
    out = tmp_path / "c.yaml"
    names = []
    for _ in range(3):
        save_calibration(make(), rejected_path(out))
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["c.rejected-2.yaml", "c.rejected-3.yaml", "c.rejected.yaml"]


def test_camera_in_the_gripper_is_where_the_gripper_is():
    T_base_gripper, T_gripper_camera = transform((0.1, 0.2, 2.0), (0.2, 0.0, 0.1)), transform((0, 0.3, 0), (0, 0.05, 0))
    held = make(mount="gripper", T_mount_camera=T_gripper_camera)
    np.testing.assert_allclose(held.T_base_camera(T_base_gripper), T_base_gripper @ T_gripper_camera)
    with pytest.raises(ValueError, match="T_base_gripper"):
        held.T_base_camera()
    np.testing.assert_array_equal(make().T_base_camera(), make().T_mount_camera)


@given(width=st.integers(160, 4000))
def test_another_size_of_the_same_aspect_sees_the_same_rays(width):
    camera = intrinsics()
    height = round(width * 480 / 640)
    if abs(width / 640 / (height / 480) - 1) > 2e-3:
        with pytest.raises(UserError, match="another aspect"):
            camera.intrinsics_at(width, height)
        return
    scaled = camera.intrinsics_at(width, height)
    camera.check(scaled, "cam-1")
    for u, v in ((0.0, 0.0), (0.25, 0.75), (1.0, 1.0)):  # shares of the image, edge to edge
        for one, n, f, c in (("width", u, "fx", "cx"), ("height", v, "fy", "cy")):
            rays = [(n * getattr(k, one) - 0.5 - getattr(k, c)) / getattr(k, f) for k in (camera.intrinsics, scaled)]
            assert rays[0] == pytest.approx(rays[1], abs=1e-9)


def test_reach_covariance_has_the_encoders_in_it():
    plain = np.diag([1e-7, 2e-7, 3e-7])
    assert make().reach_covariance_m2() is None
    known = make(point_covariance_m2=plain, expected_mm=0.6, expected_reach_mm=1.0)
    assert np.trace(known.reach_covariance_m2() - plain) == pytest.approx(1e-6 * (1.0**2 - 0.6**2))


def test_file_says_units_and_frames_and_is_compact(saved: Path):
    text = saved.read_text()
    content = yaml.safe_load(text)
    assert content["schema"] == 2 and content["units"]["length"] == "m" and "T_a_b" in content["frames"]
    assert len(text.splitlines()) < 90


def test_good_match_passes():
    calibration = make()
    mine = calibration.camera.intrinsics
    calibration.check(mine, "cam-1", "so101")
    calibration.check(dataclasses.replace(mine, fx=mine.fx + 0.3), "cam-1", "so101")


@pytest.mark.parametrize(
    ("change", "serial", "arm", "says"),
    [
        ({}, "cam-2", "so101", "of camera 'cam-1', this one is 'cam-2'"),
        ({}, "cam-1", "koch", "of arm 'so101', this one is 'koch'"),
        ({"width": 1280, "height": 720}, "cam-1", "so101", "images of 640x480, camera 'cam-1' gives 1280x720"),
        ({"fx": 600.0}, "cam-1", "so101", "fx = 560.0 px, camera 'cam-1' now has 600.0"),
        ({"cy": float("nan")}, "cam-1", "so101", "cy = 239.5 px"),
        ({"distortion": ()}, "cam-1", "so101", "another lens distortion"),
    ],
)
def test_another_camera_arm_or_size_is_refused(change, serial, arm, says):
    calibration = make()
    with pytest.raises(UserError, match=says) as caught:
        calibration.check(dataclasses.replace(calibration.camera.intrinsics, **change), serial, arm)
    assert "\n" not in str(caught.value)


def test_same_camera_may_be_calibrated_again(saved: Path):
    save_calibration(make(reprojection_px=0.125), saved)
    assert load_calibration(saved).reprojection_px == 0.125
    assert [p.name for p in saved.parent.iterdir()] == ["calibration.yaml"]  # no temporary file is left


@pytest.mark.parametrize("change", [{"camera": intrinsics(serial="cam-2")}, {"arm_name": "other"}])
def test_file_of_another_pair_is_not_overwritten(saved: Path, change):
    before = saved.read_bytes()
    with pytest.raises(UserError, match="choose another path or delete it"):
        save_calibration(make(**change), saved)
    assert saved.read_bytes() == before


def test_file_that_is_no_calibration_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "notes.yaml"
    path.write_text("shopping: [milk]\n")
    with pytest.raises(UserError, match="not overwriting"):
        save_calibration(make(), path)
    assert path.read_text() == "shopping: [milk]\n"


def test_failed_write_leaves_the_old_file(saved: Path, monkeypatch):
    before = saved.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calib.file.os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_calibration(make(reprojection_px=9.0), saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such calibration file"):
        load_calibration(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load_calibration(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema=1), "schema 1, this version reads schema 2"),
        (lambda c: c.pop("schema"), "schema: expected this field"),
        (lambda c: c.update(colour="red"), "colour: expected no such field"),
        (lambda c: c["units"].update(length="mm"), "units: expected"),
        (lambda c: c.update(camera=[1, 2]), "camera: expected a mapping"),
        (lambda c: c["camera"].update(fx="wide"), "camera.fx: expected a positive number"),
        (lambda c: c["camera"].update(width=640.5), "camera.width: expected a positive whole number"),
        (lambda c: c["camera"].update(distortion=[0.1]), "camera.distortion: expected"),
        (lambda c: c["camera"].update(source="guess"), "camera.source: expected board or factory"),
        (lambda c: c["camera"].pop("board"), "camera.board: expected this field"),
        (lambda c: c["camera"]["views"][0].update(used=1), r"camera.views\[0\].used: expected true or false"),
        (lambda c: c["hand_eye"].update(mount="ceiling"), "hand_eye.mount: expected base or gripper"),
        (lambda c: c["hand_eye"].update(mount="gripper"), "hand_eye.T_base_camera: expected no such field"),
        (lambda c: c["hand_eye"].pop("T_base_camera"), "hand_eye.T_base_camera: expected this field"),
        (lambda c: c["hand_eye"]["T_base_camera"].pop(), "T_base_camera: expected 4 rows"),
        (lambda c: c["hand_eye"]["T_base_camera"][0].__setitem__(0, 3.0), "T_base_camera: expected a rotation"),
        (lambda c: c["hand_eye"]["T_base_camera"][0].__setitem__(3, float("nan")), "T_base_camera: expected 4 rows"),
        (lambda c: c["hand_eye"]["errors"].update(reprojection_px=None), "errors.reprojection_px: expected a number"),
        (lambda c: c["hand_eye"]["board"].update(dictionary="DICT_X"), "no dictionary 'DICT_X'"),
        (lambda c: c["hand_eye"]["views"][1]["ids"].append(99), r"views\[1\].ids: expected"),
        (lambda c: c["hand_eye"]["views"][0]["corners_px"].pop(), r"views\[0\].corners_px: expected"),
        (lambda c: c["hand_eye"]["views"][0].update(depth_m=[0.5]), r"views\[0\].depth_m: expected a number for"),
        (lambda c: c["hand_eye"].update(views="none"), "views: expected a list"),
        (lambda c: c["hand_eye"].update(outliers=[2]), "outliers: expected whole numbers below 2"),
        (lambda c: c["hand_eye"].update(diagnosis=[2]), "diagnosis: expected a list of sentences"),
        (lambda c: c["hand_eye"].update(joint_zeros_rad=0.1), "joint_zeros_rad: expected a list of numbers"),
        (lambda c: c["hand_eye"].update(covariance=[[1.0]]), "covariance: expected 6 rows of 6 numbers"),
        (
            lambda c: c["hand_eye"].update(reference={"joints_rad": [], "jpeg": "!"}),
            "reference.jpeg: expected an image",
        ),
    ],
)
def test_wrong_field_is_named(saved: Path, change, says):
    content = yaml.safe_load(saved.read_text())
    change(content)
    saved.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=says) as caught:
        load_calibration(saved)
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_file_is_one_clear_line(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        save_calibration(make(reference=Reference(np.zeros(6), np.zeros((8, 8, 3), np.uint8))), path)
        raw = path.read_bytes()
        cut = data.draw(st.integers(0, len(raw) - 1))
        path.write_bytes(raw[:cut] + data.draw(st.binary(min_size=0, max_size=6)) + raw[cut + 1 :])
        try:
            load_calibration(path)  # damage to a digit cannot be told
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
