"""What `vlar1 deploy` copies: all that the package installs from and nothing built; a robot file with its model."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from drivers.errors import UserError
from drivers.robot import SO101_PATH, load_robot
from edge.deploy import shipment
from edge.deploy.shipment import bundle_shipment, package_shipment, robot_shipment
from edge.engine.bundle import load_bundle
from edge.engine.hashes import file_sha256
from edge.shipped import SHIPPED_BUNDLE

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_is_what_the_dockerfile_copies() -> None:
    copies = re.findall(r"^COPY (.*)$", (ROOT / "deploy" / "jetson" / "Dockerfile").read_text(), re.MULTILINE)
    assert {source for line in copies for source in shlex.split(line)[:-1]} == {
        *shipment.PACKAGE_FILES,
        *shipment.PACKAGE_FOLDERS,
    }


def checkout(folder: Path) -> Path:
    for name in shipment.PACKAGE_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in shipment.PACKAGE_FOLDERS:
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "__init__.py").write_text(name)
    return folder


def test_what_was_built_here_stays_here_and_every_source_counts(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    before = package_shipment(folder)
    assert before is not None and len(before.items) == len(shipment.PACKAGE_FILES) + len(shipment.PACKAGE_FOLDERS)
    for name in ("edge/native.so", "edge/__pycache__/a.cpython-311.pyc", "edge/.a.py.swp", "tests/a.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("built")
    again = package_shipment(folder)
    assert again == before
    digests = {before.digest}
    for change in (
        lambda: (folder / "edge" / "deep" / "__init__.py").write_text("changed"),
        lambda: (folder / "edge" / "deep" / "__init__.py").rename(folder / "edge" / "deep" / "other.py"),
        lambda: (folder / "edge" / "deep" / "other.py").unlink(),
    ):
        change()
        changed = package_shipment(folder)
        assert changed is not None and changed.digest not in digests
        digests.add(changed.digest)
    (folder / "pyproject.toml").unlink()
    assert package_shipment(folder) is None


def test_a_bundle_goes_whole_with_the_hashes_of_its_manifest() -> None:
    found = bundle_shipment(load_bundle(SHIPPED_BUNDLE))
    assert found.place == "bundles/tabletop"
    assert {item.name for item in found.items} == {path.name for path in SHIPPED_BUNDLE.iterdir()}
    assert all(file_sha256(item.path) == item.sha256 and item.path.stat().st_size == item.bytes for item in found.items)


def arm_file(folder: Path, model: str) -> Path:
    content = {**yaml.safe_load(SO101_PATH.read_text()), "model": model}
    folder.mkdir(exist_ok=True)
    (folder / "my-arm.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "my-arm.yaml"


def test_a_robot_file_loads_where_it_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its model, though that is in another folder, and what the model includes."""
    (tmp_path / "models").mkdir()
    text = SO101_PATH.with_suffix(".xml").read_text()
    head, tail = text.index(">", text.index("<mujoco")) + 1, text.rindex("</mujoco>")
    (tmp_path / "models" / "so101.xml").write_text('<mujoco><include file="parts/body.xml"/></mujoco>')
    (tmp_path / "models" / "parts").mkdir()
    (tmp_path / "models" / "parts" / "body.xml").write_text(f"<mujoco>{text[head:tail]}</mujoco>")
    arm_file(tmp_path / "arms", "../models/so101.xml")
    monkeypatch.chdir(tmp_path / "arms")
    found, name = robot_shipment(Path("my-arm.yaml"))
    assert found.place == "robots/my-arm" and len(found.items) == 3
    there = tmp_path / "there"
    for item in found.items:
        (there / item.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, there / item.name)
    shutil.rmtree(tmp_path / "models")
    assert load_robot(there / name).name == load_robot().name


def test_a_model_that_a_board_would_not_find_is_refused(tmp_path: Path) -> None:
    path = arm_file(tmp_path, str(SO101_PATH.with_suffix(".xml")))
    with pytest.raises(UserError, match=f"^robot file {path}: field model is .*so101.xml, which a board does not have"):
        robot_shipment(path)
