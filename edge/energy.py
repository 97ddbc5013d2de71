"""What a stretch of time cost in joules, where the machine has a meter: RAPL on a PC, an INA3221 on a Jetson."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from drivers.errors import UserError

_PERIOD_S = 0.05
# Rails of a Jetson that together feed all that computes: the first set that a board has. Orin NX and Nano measure
# their whole input; an AGX Orin its three supplies, with the fourth rail fed by the last of them.
_RAILS = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("POM_5V_IN",))


@dataclass(frozen=True)
class Energy:
    """``joules`` of the machine as a whole, others' work and idling included, by what ``source`` measures."""

    joules: float
    source: str


class EnergyMeter:
    """Measures from `start` to `stop`.

    Args:
        sys_root: where the system shows its devices.
        period_s: between two samples of a meter that knows power alone.

    Attributes:
        missing: why there is nothing to measure with, in words; empty where there is.
    """

    def __init__(self, sys_root: Path = Path("/sys"), period_s: float = _PERIOD_S) -> None:
        self._counters, self.missing = _counters(sys_root)
        self._rails = {} if self._counters else _rails(sys_root)
        if self._rails:
            self.missing = ""
        self._period_s = period_s
        self._began_uj: dict[Path, int] = {}
        self._samples: list[tuple[float, float]] = []  # s, W
        self._ended = threading.Event()
        self._sampler: threading.Thread | None = None

    def start(self) -> None:
        """Begin. Raises UserError where a meter that was there does not answer."""
        self._began_uj = {zone: _integer(zone / "energy_uj") for zone in self._counters}
        if self._rails:
            self._samples = [(time.monotonic(), self._power_w())]
            self._ended.clear()
            self._sampler = threading.Thread(target=self._sample, name="energy", daemon=True)
            self._sampler.start()

    def stop(self) -> Energy | None:
        """What was used since `start`; None without a meter. Raises as `start`."""
        if self._counters:
            return Energy(sum(map(self._used_j, self._counters)), f"RAPL {', '.join(self._counters.values())}")
        if self._sampler is None:
            return None
        self._ended.set()
        self._sampler.join()
        self._samples.append((time.monotonic(), self._power_w()))
        pairs = zip(self._samples, self._samples[1:], strict=False)
        joules = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)
        return Energy(joules, f"INA3221 {' + '.join(self._rails)}")

    def _used_j(self, zone: Path) -> float:
        used_uj = _integer(zone / "energy_uj") - self._began_uj[zone]
        if used_uj < 0:  # the counter began again
            used_uj += _integer(zone / "max_energy_range_uj")
        return used_uj * 1e-6

    def _power_w(self) -> float:
        return sum(_integer(volts) * _integer(amperes) for volts, amperes in self._rails.values()) * 1e-6  # mV mA

    def _sample(self) -> None:
        while not self._ended.wait(self._period_s):
            try:
                self._samples.append((time.monotonic(), self._power_w()))
            except UserError:
                return  # `stop` reads once more, and says so


def _counters(sys_root: Path) -> tuple[dict[Path, str], str]:
    """RAPL's packages by folder, or why there are none that can be read."""
    found = {}
    for zone in sorted((sys_root / "class/powercap").glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a package
            continue
        try:
            name = (zone / "name").read_text().strip()
            _integer(zone / "energy_uj")
        except PermissionError:
            return {}, f"{zone}/energy_uj is for root alone: `sudo chmod a+r {zone}/energy_uj`"
        except (OSError, UserError):
            continue
        if name.startswith("package"):
            found[zone] = name
    return found, "" if found else "this machine has no RAPL and no INA3221 power meter"


def _rails(sys_root: Path) -> dict[str, tuple[Path, Path]]:
    """A Jetson's rails: name -> files of millivolts and milliamperes; none where they do not make up the whole."""
    found = {}
    for label in sorted((sys_root / "class/hwmon").glob("hwmon*/in*_label")):
        try:
            name = label.read_text().strip()
            files = (label.with_name(f"{label.name[:-6]}_input"), label.with_name(f"curr{label.name[2:-6]}_input"))
            for file in files:
                _integer(file)
        except (OSError, UserError):
            continue
        found[name] = files
    return next(({name: found[name] for name in rails} for rails in _RAILS if set(rails) <= set(found)), {})


def _integer(file: Path) -> int:
    """Raises PermissionError, and UserError where there is no number."""
    try:
        return int(file.read_text())
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: the power meter does not answer: {error}") from None
