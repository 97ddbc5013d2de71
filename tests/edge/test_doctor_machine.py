"""Board, power mode, clocks, memory, swap and disk of machines that are only files: a Jetson, a PC, a bare one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.doctor.machine import board, clocks, disk, memory, power_mode, swap

# As a Jetson Orin Nano with JetPack 6.2 has them.
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
NVPMODEL = """
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""
MEMINFO = "MemTotal:        7802812 kB\nMemFree:          512000 kB\nMemAvailable:    5600000 kB\n"
ZRAM = "Filename Type Size Used Priority\n/dev/zram0 partition 650232 0 5\n/dev/zram1 partition 650232 0 5\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write(tmp_path / "nv_tegra_release", RELEASE)


def test_board_tells_a_jetson_its_l4t_and_jetpack(tmp_path: Path, release: Path) -> None:
    model = write(tmp_path / "model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    found = board(release, model)
    assert found.state == "fine"
    kit = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.told == f"{kit}, L4T 36.4.3 (JetPack 6)"


def test_board_of_an_old_jetson_a_foreign_image_and_a_pc(tmp_path: Path) -> None:
    old = write(tmp_path / "old", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n")
    found = board(old, tmp_path / "none")
    assert found.state == "warning" and "L4T 35.4.1 (JetPack 5): older than L4T 36" in found.told and found.to_type
    foreign = board(tmp_path / "none", write(tmp_path / "model", "NVIDIA Jetson AGX Orin\0"))
    assert foreign.state == "warning" and "does not say which L4T" in foreign.told
    assert board(tmp_path / "none", tmp_path / "none").state == "absent"


@pytest.mark.parametrize(
    "status,state,type_",
    [
        ("pmode:0002 fmode:quiet", "fine", ""),
        ("pmode:0000", "warning", "sudo nvpmodel -m 2"),  # the largest number is not the fastest mode
        ("pmode:0003", "warning", "sudo nvpmodel -m 2"),
        ("", "warning", "sudo nvpmodel -m 2"),  # never set: the default of the file, 25W
        ("pmode:0009", "warning", "sudo nvpmodel -q"),
    ],
)
def test_power_mode(status: str, state: str, type_: str, tmp_path: Path, release: Path) -> None:
    modes = write(tmp_path / "nvpmodel.conf", NVPMODEL)
    (found,) = power_mode(modes, write(tmp_path / "status", status), release)
    assert (found.state, found.to_type) == (state, type_)


def test_power_mode_without_maxn_compares_watts_and_a_pc_has_none(tmp_path: Path, release: Path) -> None:
    modes = write(
        tmp_path / "nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MODE_7W_6CORE >\n"
    )
    (found,) = power_mode(modes, write(tmp_path / "status", "pmode:0001"), release)
    assert found.to_type == "sudo nvpmodel -m 0" and found.told.startswith("MODE_7W_6CORE; 15W is faster")
    assert power_mode(modes, tmp_path / "status", tmp_path / "none") == ()


@pytest.mark.parametrize("low_khz,governor,state", [(729600, "schedutil", "warning"), (1510400, "schedutil", "fine")])
def test_clocks_that_follow_the_load_are_told(
    low_khz: int, governor: str, state: str, tmp_path: Path, release: Path
) -> None:
    for policy in ("policy0", "policy4"):
        write(tmp_path / "cpufreq" / policy / "scaling_governor", f"{governor}\n")
        write(tmp_path / "cpufreq" / policy / "scaling_min_freq", f"{low_khz}\n")
        write(tmp_path / "cpufreq" / policy / "scaling_max_freq", "1510400\n")
    found = clocks(tmp_path / "cpufreq", release)
    assert found.state == state
    assert found.to_type == ("sudo jetson_clocks" if state == "warning" else "")
    if state == "warning":
        on_pc = clocks(tmp_path / "cpufreq", tmp_path / "none").to_type
        assert on_pc == f"echo performance | sudo tee {tmp_path}/cpufreq/policy*/scaling_governor"


def test_clocks_governor_performance_and_a_machine_that_shows_none(tmp_path: Path) -> None:
    write(tmp_path / "cpufreq" / "policy0" / "scaling_governor", "performance\n")
    assert clocks(tmp_path / "cpufreq", tmp_path / "none").state == "fine"
    assert clocks(tmp_path / "none", tmp_path / "none").state == "absent"


def test_memory_and_swap_of_a_small_jetson(tmp_path: Path, release: Path) -> None:
    meminfo = write(tmp_path / "meminfo", MEMINFO)
    assert memory(meminfo).told == "8.0 GB, 5.7 GB of it available"
    zram = swap(meminfo, write(tmp_path / "swaps", ZRAM), release)  # compressed memory is no swap
    assert zram.state == "warning" and zram.told.startswith("none on disk") and "swapon /swapfile" in zram.to_type
    file = write(tmp_path / "swaps", f"{ZRAM}/swapfile file 8388604 0 -2\n")
    assert (swap(meminfo, file, release).state, swap(meminfo, file, release).told) == ("fine", "8.6 GB on disk")
    assert swap(meminfo, tmp_path / "none", tmp_path / "none").state == "absent"  # a PC needs none
    assert memory(tmp_path / "none").state == "warning"


def test_disk_is_looked_at_where_the_folder_would_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    asked = []

    def usage(place: Path) -> object:
        asked.append(place)
        return type("Usage", (), {"free": free})()

    monkeypatch.setattr(shutil, "disk_usage", usage)
    free = 5_900_000_000
    found = disk(tmp_path / "not" / "there")
    assert asked == [tmp_path] and found.state == "warning" and found.told.startswith("5.9 GB free at ")
    free = 6_100_000_000
    assert disk(tmp_path).state == "fine"
