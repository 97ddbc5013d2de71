"""What a profile asks the machine: its memory's speed, its caches, its power meters, on files as Linux has them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from drivers.errors import UserError
from edge import memory_speed
from edge.energy import EnergyMeter
from edge.memory_speed import cache_bytes, memory_bytes, peak_bytes, read_bandwidth


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def rapl(root: Path, **packages: tuple[int, int]) -> None:
    """Packages with (microjoules, range), as powercap shows them, with a part of the first."""
    for i, (name, (energy_uj, range_uj)) in enumerate(packages.items()):
        zone = f"class/powercap/intel-rapl:{i}"
        write(root, {f"{zone}/name": name, f"{zone}/energy_uj": energy_uj, f"{zone}/max_energy_range_uj": range_uj})
    write(root, {"class/powercap/intel-rapl:0:0/name": "core", "class/powercap/intel-rapl:0:0/energy_uj": 5})


def test_rapl_is_what_its_packages_counted_even_where_a_counter_begins_again(tmp_path: Path) -> None:
    rapl(tmp_path, **{"package-0": (1_000_000, 9_000_000), "package-1": (8_500_000, 9_000_000), "psys": (7, 9)})
    meter = EnergyMeter(tmp_path)
    meter.start()
    write(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": 3_000_000})
    write(tmp_path, {"class/powercap/intel-rapl:1/energy_uj": 250_000})
    energy = meter.stop()
    assert energy is not None and energy.joules == pytest.approx(2.0 + 0.75)
    assert energy.source == "RAPL package-0, package-1" and meter.missing == ""


def test_a_meter_for_root_alone_is_said_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl(tmp_path, **{"package-0": (1, 2)})
    read = Path.read_text

    def refused(path: Path, *args: str, **kwargs: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refused)
    meter = EnergyMeter(tmp_path)
    assert f"sudo chmod a+r {tmp_path}/class/powercap/intel-rapl:0/energy_uj" in meter.missing
    meter.start()
    assert meter.stop() is None


def ina3221(root: Path, rails: dict[str, tuple[int, int]]) -> None:
    """Rails with (millivolts, milliamperes), as a Jetson's hwmon shows them."""
    for i, (name, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        chip = "class/hwmon/hwmon3"
        write(
            root,
            {f"{chip}/in{i}_label": name, f"{chip}/in{i}_input": millivolts, f"{chip}/curr{i}_input": milliamperes},
        )
    write(root, {"class/hwmon/hwmon3/in7_label": "sum of shunt voltages", "class/hwmon/hwmon3/in7_input": 1})


@pytest.mark.parametrize(
    ("rails", "power_w", "source"),
    [
        ({"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400)}, 6.0, "INA3221 VDD_IN"),
        (
            {"VDD_GPU_SOC": (20_000, 100), "VDD_CPU_CV": (20_000, 50), "VIN_SYS_5V0": (5000, 600)},
            6.0,
            "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
        ),
    ],
)
def test_a_jetsons_energy_is_its_power_over_the_time(
    rails: dict[str, tuple[int, int]], power_w: float, source: str, tmp_path: Path
) -> None:
    ina3221(tmp_path, rails)
    meter = EnergyMeter(tmp_path, period_s=0.001)
    marks_s = [time.monotonic()]
    meter.start()
    marks_s.append(time.monotonic())
    meter._ended.wait(0.01)
    marks_s.append(time.monotonic())
    energy = meter.stop()
    marks_s.append(time.monotonic())
    assert energy is not None and energy.source == source
    assert power_w * (marks_s[2] - marks_s[1]) <= energy.joules <= power_w * (marks_s[3] - marks_s[0])


def test_rails_that_are_not_the_whole_are_no_meter(tmp_path: Path) -> None:
    ina3221(tmp_path, {"VDD_CPU_CV": (20_000, 50)})
    meter = EnergyMeter(tmp_path)
    assert "no RAPL and no INA3221" in meter.missing
    meter.start()
    assert meter.stop() is None


def test_a_meter_that_falls_silent_is_said(tmp_path: Path) -> None:
    rapl(tmp_path, **{"package-0": (1, 2)})
    meter = EnergyMeter(tmp_path)
    meter.start()
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(UserError, match="power meter does not answer"):
        meter.stop()


def test_bandwidth_is_of_the_fastest_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_speed, "_READ_BYTES", 4_000_000)
    clock = itertools.accumulate([0.0, 3.0, 1.0, 2.0, 1.0, 4.0, 1.0, 5.0, 1.0, 6.0])  # passes of 3, 2, 4, 5, 6 s
    monkeypatch.setattr(memory_speed.time, "perf_counter", lambda: next(clock))
    assert read_bandwidth(2) == 2_000_000.0


def test_no_more_than_a_quarter_of_the_free_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_speed, "memory_bytes", lambda field: 1_000_000)
    clock = itertools.count()
    monkeypatch.setattr(memory_speed.time, "perf_counter", lambda: float(next(clock)))
    assert read_bandwidth(1) == 250_000.0


def test_sizes_are_those_that_the_system_tells(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemAvailable:    2048 kB\nVmHWM:\n")
    assert memory_bytes("MemAvailable", tmp_path / "meminfo") == 2 << 20
    assert memory_bytes("VmHWM", tmp_path / "meminfo") is None
    assert memory_bytes("MemAvailable", tmp_path / "none") is None
    write(tmp_path, {"index0/size": "48K", "index2/size": "2048K", "index3/size": "24M", "index4/size": "what"})
    assert cache_bytes(tmp_path) == 24 << 20
    assert cache_bytes(tmp_path / "none") is None
    assert (peak_bytes() or 1) > 0
