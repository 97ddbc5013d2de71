"""The optional parts: whole, partly installed, of another version, unknown to the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from edge.doctor.extras import EXTRAS, extras

NEEDS = [
    "numpy>=2",
    'torch==2.13.0; extra == "export"',
    'onnx>=1.17; extra == "export"',
    'pyrealsense2>=2.55; extra == "realsense"',
    'vlar1-edge[export,realsense]; extra == "test"',
]


@pytest.mark.parametrize(
    "here,state,told",
    [
        ({"torch": "2.13.0+cpu", "onnx": "1.20"}, "fine", "for vlar1 export"),
        ({"torch": "2.13.0"}, "absent", "for vlar1 export; lacks onnx"),
        ({"torch": "2.12.1", "onnx": "1.20"}, "absent", "for vlar1 export; lacks torch 2.13.0 (here: 2.12.1)"),
    ],
)
def test_an_extra(here: dict[str, str], state: str, told: str) -> None:
    def installed(name: str) -> str:
        if name not in here:
            raise PackageNotFoundError(name)
        return here[name]

    export, realsense = extras(NEEDS, installed)
    assert (export.name, export.state, export.told) == ("export", state, told)
    assert export.to_type == (
        "" if state == "fine" else "pip install torch==2.13.0 && pip install 'vlar1-edge[export]'"
    )
    assert (realsense.state, realsense.to_type) == ("absent", "pip install 'vlar1-edge[realsense]'")


def test_every_extra_of_the_installed_package_is_one_that_the_project_declares() -> None:
    assert {finding.name for finding in extras()} <= set(EXTRAS)
    assert "export" in {finding.name for finding in extras()}
