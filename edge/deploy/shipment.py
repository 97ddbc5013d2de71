"""What is copied to a board: the files of the package, of a bundle, of a robot, each with its hash."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import mujoco
import yaml

from drivers.errors import UserError
from drivers.robot import load_robot
from edge.engine.bundle import MANIFEST, Bundle
from edge.engine.hashes import file_sha256
from edge.engine.tensorrt.layout import FOLDER
from edge.engine.tensorrt.plan import ENGINES

CHECKOUT = Path(__file__).resolve().parents[2]
# What the package installs from, as in deploy/jetson/Dockerfile.
PACKAGE_FILES = ("pyproject.toml", "constraints.txt", "CMakeLists.txt", "README.md", "LICENSE")
PACKAGE_FOLDERS = ("calib", "drivers", "edge", "export", "training")
_BUILT = (".so", ".pyc")


@dataclass(frozen=True)
class Item:
    """One file.

    Attributes:
        name: where it goes in the shipment's folder, with /.
        path: where it is here.
        bytes: its size.
        sha256: its hash, as hex.
    """

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shipment:
    """A folder of files.

    Attributes:
        kind: what it is, in a word.
        place: where it goes below the deploy's folder, with /.
        items: all of its files.
        kept: a folder in it that is the board's own and outlives a new copy, "" for none.
    """

    kind: str
    place: str
    items: tuple[Item, ...]
    kept: str = ""

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(item.bytes for item in self.items)

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents, as hex."""
        lines = sorted(f"{item.sha256} {item.name}\n" for item in self.items)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_shipment(checkout: Path = CHECKOUT) -> Shipment | None:
    """The package's own files; None where this package was not installed from a checkout that is still there."""
    if not all((checkout / name).exists() for name in (*PACKAGE_FILES, *PACKAGE_FOLDERS)):
        return None
    paths = [checkout / name for name in PACKAGE_FILES]
    for folder in PACKAGE_FOLDERS:
        paths += [path for path in sorted((checkout / folder).rglob("*")) if path.is_file() and _is_source(path)]
    return Shipment("package", "source", tuple(_item(path.relative_to(checkout).as_posix(), path) for path in paths))


def _is_source(path: Path) -> bool:
    return path.suffix not in _BUILT and not path.name.startswith(".")


def bundle_shipment(bundle: Bundle) -> Shipment:
    """A checked bundle: what its manifest lists. Engines that were built on the board stay there."""
    manifest = _item(MANIFEST, bundle.path / MANIFEST)
    files = bundle.manifest["files"]
    listed = (Item(name, bundle.path / name, entry["bytes"], entry["sha256"]) for name, entry in files.items())
    return Shipment("bundle", f"bundles/{bundle.path.resolve().name}", (*listed, manifest), f"{FOLDER}/{ENGINES}")


def robot_shipment(path: Path) -> tuple[Shipment, str]:
    """A robot file, the model it names and what that names; and where in the shipment the robot file is.

    Raises:
        UserError: the file cannot be used, here or elsewhere.
    """
    robot = load_robot(path)
    if Path(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]).is_absolute():
        raise UserError(
            f"robot file {path}: field model is {robot.model}, which a board does not have; put the model beside the "
            "robot file and name it without folders"
        )
    absolute, model = Path(os.path.abspath(path)), os.path.abspath(robot.model)
    files = [absolute, *(Path(os.path.abspath(name)) for name in mujoco.mju_getXMLDependencies(model))]
    root = Path(os.path.commonpath([file.parent for file in files]))
    items = tuple(_item(file.relative_to(root).as_posix(), file) for file in sorted(set(files)))
    return Shipment("robot", f"robots/{absolute.stem}", items), absolute.relative_to(root).as_posix()


def _item(name: str, path: Path) -> Item:
    return Item(name, path, path.stat().st_size, file_sha256(path))
