"""NVIDIA's two modules of one interface, ``tensorrt`` and ``tensorrt_rtx``: which is here, and what it says."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from drivers.errors import UserError
from edge.engine.tensorrt.plan import Target

RTX = "tensorrt_rtx"
MODULES = ("tensorrt", RTX)
INSTALL = "install NVIDIA's tensorrt (JetPack brings it), or: pip install tensorrt-rtx"


def installed(names: tuple[str, ...] = MODULES) -> list[ModuleType]:
    """Those of the modules that load, in this order.

    Raises:
        UserError: none does.
    """
    found, why = [], f"{' or '.join(names)} is not installed"
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                why = f"{name} is installed but does not load: {error}"
        except (ImportError, OSError) as error:  # its libraries are missing, or for another system
            why = f"{name} is installed but does not load: {error}"
    if not found:
        raise UserError(f"{why}; {INSTALL}")
    return found


def ahead_of_time(names: Sequence[str]) -> Target:
    """The target that ``--for SM86 SM89`` means: any GPU of these compute capabilities, by one engine for all.

    Raises:
        UserError: tensorrt_rtx is not installed, or does not build for it.
    """
    trt: Any = installed((RTX,))[0]
    known = capabilities(trt)
    for name in names:
        if name.upper() not in known:
            raise UserError(
                f"--for {name}: {RTX} {trt.__version__} builds for {', '.join(known)}; for another GPU run "
                "vlar1 build BUNDLE on the machine that has it"
            )
    digits = sorted({int(name.upper().removeprefix("SM")) for name in names})
    return Target(RTX, trt.__version__, tuple(f"{n // 10}.{n % 10}" for n in digits), None)


def capabilities(trt: Any) -> list[str]:
    """Those that tensorrt_rtx builds for, ``SM86`` and so on. Data centre GPUs' are not among all of its versions'."""
    return [member for member in trt.ComputeCapability.__members__ if member.startswith("SM")]


class Log:
    """Keeps TensorRT's errors instead of printing them. ``log`` is what TensorRT takes."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        errors, bad = self.errors, (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in bad:
                    errors.append(text)

        self.log = Logger()

    @property
    def reason(self) -> str:
        """The first error, on one line."""
        return " ".join((self.errors or ["it gave no reason"])[0].split())
