"""The machine that ``vlar1 doctor`` finds itself on: board, power mode, clocks, memory, swap, disk."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from edge.doctor.findings import Finding, read_text

L4T_RELEASE = Path("/etc/nv_tegra_release")
MODEL = Path("/proc/device-tree/model")
POWER_MODES, POWER_STATUS = Path("/etc/nvpmodel.conf"), Path("/var/lib/nvpmodel/status")
CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
MEMINFO, SWAPS = Path("/proc/meminfo"), Path("/proc/swaps")
JETPACKS = {32: 4, 35: 5, 36: 6, 38: 7}
"""JetPack's number by that of L4T, its Linux (NVIDIA's JetPack archive)."""
OLDEST_L4T = 36
"""The first with a Python (3.10) that this package runs on, and with TensorRT 10 (JetPack 6.1 on)."""
ROOM_BYTES = 6e9
"""A bundle of the 3B model in int4 and the TensorRT engines of another: 2.5 GB each (docs/performance.md), and air."""
SMALL_MEMORY_BYTES, ENGINE_SWAP_BYTES = 9e9, 4e9


def board(release: Path = L4T_RELEASE, model: Path = MODEL) -> Finding:
    """Which computer it is, and which L4T and JetPack a Jetson runs."""
    name = read_text(model).strip("\0 ")
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read_text(release))
    if found is None:
        if "tegra" in name.lower() or "jetson" in name.lower():
            return Finding("board", "warning", f"{name}, but {release} does not say which L4T; is this NVIDIA's image?")
        return Finding("board", "absent", f"not a Jetson: {name or platform.machine()}, {platform.system()}")
    major = int(found[1])
    jetpack = f"JetPack {JETPACKS[major]}" if major in JETPACKS else "a JetPack not known here"
    told = f"{name or 'Jetson'}, L4T {found[1]}.{found[2]} ({jetpack})"
    if major < OLDEST_L4T:
        advice = "cat /etc/nv_tegra_release  # then flash JetPack 6 with NVIDIA's SDK Manager"
        return Finding("board", "warning", f"{told}: older than L4T {OLDEST_L4T}, not supported", advice)
    return Finding("board", "fine", told)


def power_mode(
    modes: Path = POWER_MODES, status: Path = POWER_STATUS, release: Path = L4T_RELEASE
) -> tuple[Finding, ...]:
    """Whether nvpmodel holds a Jetson back. The modes' numbers are the board's own: 0 is not always the fastest."""
    if not release.exists():
        return ()
    names = {int(id): name for id, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", read_text(modes))}
    now = re.search(r"pmode:(\d+)", read_text(status)) or re.search(r"PM_CONFIG\s+DEFAULT=(\d+)", read_text(modes))
    if not names or now is None or int(now[1]) not in names:
        return (Finding("power mode", "warning", f"{status} and {modes} do not say which it is", "sudo nvpmodel -q"),)
    mode, fastest = int(now[1]), max(names, key=lambda id: _power(names[id]))
    if _power(names[mode]) >= _power(names[fastest]):
        return (Finding("power mode", "fine", names[mode]),)
    told = f"{names[mode]}; {names[fastest]} is faster, and asks more of the supply and the cooling"
    return (Finding("power mode", "warning", told, f"sudo nvpmodel -m {fastest}"),)


def _power(name: str) -> float:
    """Watts; without a bound for MAXN and MAXN_SUPER."""
    watts = re.search(r"(\d+)W", name)
    return float("inf") if name.startswith("MAXN") else float(watts[1]) if watts else 0.0


def clocks(cpufreq: Path = CPUFREQ, release: Path = L4T_RELEASE) -> Finding:
    """Whether processor clocks follow the load: a decision's latency then varies with what was before it."""
    policies = sorted(cpufreq.glob("policy*"))
    governors = {read_text(policy / "scaling_governor") for policy in policies} - {""}
    if not governors:
        return Finding("clocks", "absent", "the system does not show them (a virtual machine?)")
    held = all(
        read_text(policy / "scaling_min_freq") == read_text(policy / "scaling_max_freq") != "" for policy in policies
    )
    if held or governors == {"performance"}:
        return Finding("clocks", "fine", "held" if held else "governor performance")
    type_ = f"echo performance | sudo tee {cpufreq}/policy*/scaling_governor"
    told = f"governor {', '.join(sorted(governors))}: clocks follow the load, and so does latency"
    return Finding("clocks", "warning", told, "sudo jetson_clocks" if release.exists() else type_)


def memory(meminfo: Path = MEMINFO) -> Finding:
    """All of it, and what is free to take."""
    total, available = memory_bytes(meminfo)
    if not total:
        return Finding("memory", "warning", f"{meminfo} does not say how much there is")
    return Finding("memory", "fine", f"{total / 1e9:.1f} GB, {available / 1e9:.1f} GB of it available")


def memory_bytes(meminfo: Path = MEMINFO) -> tuple[float, float]:
    """Total and available, in bytes; 0 where the system does not say."""
    return _kib(meminfo, "MemTotal"), _kib(meminfo, "MemAvailable")


def swap(meminfo: Path = MEMINFO, swaps: Path = SWAPS, release: Path = L4T_RELEASE) -> Finding:
    """Swap on a disk; compressed memory (zram) is none. Building engines on a small Jetson needs it."""
    rows = [line.split() for line in read_text(swaps).splitlines()[1:]]
    disk_bytes = sum(1024 * int(row[2]) for row in rows if len(row) > 2 and row[2].isdigit() and "zram" not in row[0])
    total, _ = memory_bytes(meminfo)
    told = f"{disk_bytes / 1e9:.1f} GB on disk" if disk_bytes else "none on disk"
    if release.exists() and total < SMALL_MEMORY_BYTES and disk_bytes < ENGINE_SWAP_BYTES:
        steps = "fallocate -l 8G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"
        told += f"; `vlar1 build` of a 3B model may run out of {total / 1e9:.0f} GB"
        return Finding("swap", "warning", told, f"sudo sh -c '{steps}'")
    return Finding("swap", "fine" if disk_bytes else "absent", told)


def disk(folder: Path) -> Finding:
    """Room for bundles where ``folder`` lies, or would lie."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    told = f"{free_bytes / 1e9:.1f} GB free at {place}"
    if free_bytes < ROOM_BYTES:
        wanted = f"; a bundle of the 3B model and its engines take {ROOM_BYTES / 1e9:.0f} GB"
        return Finding("disk", "warning", told + wanted, f"du -xh -d 2 {place} | sort -h | tail")
    return Finding("disk", "fine", told)


def _kib(meminfo: Path, field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", read_text(meminfo), re.MULTILINE)
    return 1024.0 * int(found[1]) if found else 0.0
