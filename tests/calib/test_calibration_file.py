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
from calib.file import Calibration, View, load_calibration, save_calibration
from drivers.errors import UserError
from drivers.protocols import Intrinsics


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
        camera_serial="cam-1",
        intrinsics=dataclasses.replace(VGA, distortion=(0.1, -0.2, 0.0, 0.0, 1e-5)),
        board=Board(),
        T_base_camera=transform((0.3, -2.0, 0.4), (0.52, 0.01, 0.42)),
        T_gripper_board=transform((1.2, -1.1, 1.3), (-0.006, 0.05, -0.15)),
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
@example(serial="0", arm="\x85", turn=(0, 0, 0), shift=(0, 0, 0), focal=1.0, distortion=[], views=[])  # a YAML line end
@given(
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
def test_comes_back_as_saved(serial, arm, turn, shift, focal, distortion, views):
    calibration = make(
        camera_serial=serial,
        arm_name=arm,
        T_base_camera=transform(turn, shift),
        intrinsics=Intrinsics(640, 480, focal, focal / 3, 320.1, 239.9, tuple(distortion)),
        views=tuple(
            View(
                np.array(joints),
                np.array([c[0] for c in corners], dtype=np.int64),
                np.array([c[1:] for c in corners], dtype=float).reshape(-1, 2),
                0.5,
                1.5,
            )
            for joints, corners in views
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        save_calibration(calibration, path)
        back = load_calibration(path)
    for field in ("date", "arm_name", "camera_serial", "intrinsics", "board", "reprojection_px", "leave_one_out_mm"):
        assert getattr(back, field) == getattr(calibration, field)
    np.testing.assert_array_equal(back.T_base_camera, calibration.T_base_camera)
    np.testing.assert_array_equal(back.T_gripper_board, calibration.T_gripper_board)
    assert len(back.views) == len(calibration.views)
    for ours, theirs in zip(back.views, calibration.views, strict=True):
        np.testing.assert_allclose(ours.joints_rad, theirs.joints_rad, atol=1e-6)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.corners_px, theirs.corners_px, atol=1e-3)
        assert (ours.reprojection_px, ours.leave_one_out_mm) == (theirs.reprojection_px, theirs.leave_one_out_mm)


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


def test_file_of_before_zeros_were_kept_is_read(saved: Path):
    content = yaml.safe_load(saved.read_text())
    for field in ("joint_zeros_rad", "outliers"):
        del content[field]
    saved.write_text(yaml.safe_dump(content))
    back = load_calibration(saved)
    assert back.joint_zeros_rad == () and back.outliers == ()
    assert back.expected_mm is back.expected_reach_mm is back.covariance is back.point_covariance_m2 is None


def test_file_says_units_and_frames_and_is_compact(saved: Path):
    text = saved.read_text()
    content = yaml.safe_load(text)
    assert content["schema"] == 1 and content["units"]["length"] == "m" and "T_a_b" in content["frames"]
    assert len(text.splitlines()) < 60


def test_good_match_passes():
    calibration = make()
    calibration.check(calibration.intrinsics, "cam-1", "so101")
    calibration.check(dataclasses.replace(calibration.intrinsics, fx=calibration.intrinsics.fx + 0.3), "cam-1", "so101")


@pytest.mark.parametrize(
    ("intrinsics", "serial", "arm", "says"),
    [
        ({}, "cam-2", "so101", "of camera 'cam-1', this one is 'cam-2'"),
        ({}, "cam-1", "koch", "of arm 'so101', this one is 'koch'"),
        ({"width": 1280, "height": 720}, "cam-1", "so101", "images of 640x480, camera 'cam-1' gives 1280x720"),
        ({"fx": 600.0}, "cam-1", "so101", "fx = 560.0 px, camera 'cam-1' now has 600.0"),
        ({"cy": float("nan")}, "cam-1", "so101", "cy = 239.5 px"),
        ({"distortion": ()}, "cam-1", "so101", "another lens distortion"),
    ],
)
def test_another_camera_arm_or_size_is_refused(intrinsics, serial, arm, says):
    calibration = make()
    with pytest.raises(UserError, match=says) as caught:
        calibration.check(dataclasses.replace(calibration.intrinsics, **intrinsics), serial, arm)
    assert "\n" not in str(caught.value)


def test_same_camera_may_be_calibrated_again(saved: Path):
    save_calibration(make(reprojection_px=0.125), saved)
    assert load_calibration(saved).reprojection_px == 0.125
    assert [p.name for p in saved.parent.iterdir()] == ["calibration.yaml"]  # no temporary file is left


@pytest.mark.parametrize("change", [{"camera_serial": "cam-2"}, {"arm_name": "other"}])
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
        (lambda c: c.update(schema=2), "schema 2, this version reads schema 1"),
        (lambda c: c.pop("schema"), "schema: expected this field"),
        (lambda c: c.update(colour="red"), "colour: expected no such field"),
        (lambda c: c.pop("T_base_camera"), "T_base_camera: expected this field"),
        (lambda c: c["units"].update(length="mm"), "units: expected"),
        (lambda c: c["camera"].update(fx="wide"), "camera.fx: expected a positive number"),
        (lambda c: c["camera"].update(width=640.5), "camera.width: expected a positive whole number"),
        (lambda c: c["camera"].update(distortion=[0.1]), "camera.distortion: expected"),
        (lambda c: c["T_base_camera"].pop(), "T_base_camera: expected 4 rows"),
        (lambda c: c["T_base_camera"][0].__setitem__(0, 3.0), "T_base_camera: expected a rotation"),
        (lambda c: c["T_base_camera"][0].__setitem__(3, float("nan")), "T_base_camera: expected 4 rows"),
        (lambda c: c["errors"].update(reprojection_px=None), "errors.reprojection_px: expected a number"),
        (lambda c: c["board"].update(dictionary="DICT_X"), "no dictionary 'DICT_X'"),
        (lambda c: c["views"][1]["ids"].append(99), r"views\[1\].ids: expected"),
        (lambda c: c["views"][0]["corners_px"].pop(), r"views\[0\].corners_px: expected"),
        (lambda c: c.update(views="none"), "views: expected a list"),
        (lambda c: c.update(outliers=[2]), "outliers: expected whole numbers below 2"),
        (lambda c: c.update(joint_zeros_rad=0.1), "joint_zeros_rad: expected a list of numbers"),
        (lambda c: c.update(covariance=[[1.0]]), "covariance: expected 6 rows of 6 numbers"),
        (lambda c: c.update(camera=[1, 2]), "camera: expected a mapping"),
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
        save_calibration(make(), path)
        raw = path.read_bytes()
        cut = data.draw(st.integers(0, len(raw) - 1))
        path.write_bytes(raw[:cut] + data.draw(st.binary(min_size=0, max_size=6)) + raw[cut + 1 :])
        try:
            load_calibration(path)  # damage to a digit cannot be told
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
