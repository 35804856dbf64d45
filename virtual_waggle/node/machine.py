# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of this machine, as measurements: ``sys.*``, and ``tegra_*`` on a Jetson.

Names and meta are those of Sage's own nodes, which take them from Prometheus' node exporter and NVIDIA's tegrastats.
Bytes, seconds, degrees Celsius, hertz and milliwatts.  A file that is not there, or not as expected, is passed over:
machines differ.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from virtual_waggle.message import META_VALUE, Measurement

_LARGEST = 1 << 20  # bytes of a file of the kernel's
_MOST_CPUS = 16  # machines with more tell of all together, else they would send hundreds of values each time
_MOST = 64  # file systems, network devices, sensors of one kind
_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_MEMORY = {
    "MemTotal": "sys.mem.total",
    "MemFree": "sys.mem.free",
    "MemAvailable": "sys.mem.avail",
    "SwapTotal": "sys.mem.swap.total",
    "SwapFree": "sys.mem.swap.free",
}
_ON_DISK = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "vfat", "xfs", "zfs"}
_NETWORK = {"rx_bytes": 0, "rx_packets": 1, "tx_bytes": 8, "tx_packets": 9}  # columns of /proc/net/dev
_PASSING = re.compile(r"veth|cali|cni")  # devices that come and go with containers
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Roots:
    """Where the kernel's files of the machine are seen; a container sees them elsewhere, as ``/host/proc``."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    root: Path = Path("/")


class Row(NamedTuple):
    """A value without its time."""

    name: str
    value: int | float
    meta: dict[str, str]


@dataclass
class Past:
    """What the last look saw, for what is told of the time between two: CPU ticks (busy, all), and mean power."""

    ticks: dict[str, tuple[int, int]] = field(default_factory=dict)
    power: dict[str, tuple[int, float]] = field(default_factory=dict)  # sensor -> looks, their mean


def measure(roots: Roots, now: int, past: Past) -> list[Measurement]:
    """All there is to say at a time (nanoseconds since 1970)."""
    kinds: list[Callable[[Roots], Iterator[Row]]] = [
        _times, _loads, _processors, _memory, _file_systems, _network, _thermal, _sensors, _frequencies
    ]  # fmt: skip
    rows = [Row("sys.time", now / 1e9, {})]
    for kind in kinds:
        rows += kind(roots)
    power = list(_power(roots))
    rows += [Row("sys.power", value, {"name": name}) for name, value in power]
    if is_jetson(roots):
        rows += _tegra(roots, rows, power, past)
    return [
        Measurement(row.name, now, row.value, {key: value[:META_VALUE] for key, value in row.meta.items() if value})
        for row in rows
    ]


def is_jetson(roots: Roots) -> bool:
    """Whether this is one of NVIDIA's Tegra machines."""
    return "nvidia,tegra" in _text(roots.sys / "firmware/devicetree/base/compatible")


def _times(roots: Roots) -> Iterator[Row]:
    for line in _text(roots.proc / "stat").splitlines():
        if line.startswith("btime "):
            yield Row("sys.boot_time", int(line.split()[1]), {})
    for uptime in _numbers(_text(roots.proc / "uptime"))[:1]:
        yield Row("sys.uptime", uptime, {})


def _loads(roots: Roots) -> Iterator[Row]:
    for minutes, value in zip((1, 5, 15), _numbers(_text(roots.proc / "loadavg"))[:3], strict=False):
        yield Row(f"sys.load{minutes}", value, {})


def _ticks(roots: Roots) -> dict[str, list[int]]:
    """CPU's number -> ticks in each mode since the start; "all" instead of them on machines with very many."""
    found: dict[str, list[int]] = {}
    for line in _text(roots.proc / "stat").splitlines():
        name, *words = line.split()
        if name.startswith("cpu") and len(words) >= len(_MODES) and all(word.isdigit() for word in words):
            found[name[3:] or "all"] = [int(word) for word in words[: len(_MODES)]]
    together = found.pop("all", None)
    return {"all": together} if together is not None and len(found) > _MOST_CPUS else found


def _processors(roots: Roots) -> Iterator[Row]:
    for cpu, ticks in _ticks(roots).items():
        for mode, value in zip(_MODES, ticks, strict=True):
            yield Row("sys.cpu_seconds", value / _TICKS, {"cpu": cpu, "mode": mode})


def _memory(roots: Roots) -> Iterator[Row]:
    for line in _text(roots.proc / "meminfo").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if key in _MEMORY and words and words[0].isdigit():
            yield Row(_MEMORY[key], int(words[0]) << 10, {})


def _file_systems(roots: Roots) -> Iterator[Row]:
    """Each device once, at the first place where it is mounted."""
    seen: set[str] = set()
    # of process 1: a container's own are not the machine's
    for line in _text(roots.proc / "1/mounts").splitlines():
        words = line.split()
        if len(words) < 3 or words[0] in seen or len(seen) >= _MOST:
            continue
        device, place, kind = (_OCTAL.sub(lambda match: chr(int(match[1], 8)), word) for word in words[:3])
        if kind not in _ON_DISK:
            continue
        try:
            found = os.statvfs(roots.root / place.lstrip("/"))
        except OSError:
            continue
        seen.add(words[0])
        meta = {"device": device, "fstype": kind, "mountpoint": place}
        yield Row("sys.fs.size", found.f_blocks * found.f_frsize, meta)
        yield Row("sys.fs.avail", found.f_bavail * found.f_frsize, meta)


def _network(roots: Roots) -> Iterator[Row]:
    devices = 0
    for line in _text(roots.proc / "1/net/dev").splitlines()[2:]:
        device, _, rest = line.partition(":")
        device, words = device.strip(), rest.split()
        if _PASSING.match(device) or len(words) < 10 or devices >= _MOST:
            continue
        devices += 1
        meta = {"device": device}
        for name, column in _NETWORK.items():
            if words[column].isdigit():
                yield Row(f"sys.net.{name}", int(words[column]), meta)
        state = _text(roots.sys / "class/net" / device / "operstate").strip()
        if state in ("up", "down"):
            yield Row("sys.net.up", int(state == "up"), meta)


def _thermal(roots: Roots) -> Iterator[Row]:
    for folder in _folders(roots.sys / "class/thermal", "thermal_zone*"):
        value = _number(folder / "temp")
        if value is not None:
            zone = folder.name.removeprefix("thermal_zone")
            yield Row("sys.thermal", value / 1000, {"type": _text(folder / "type").strip(), "zone": zone})


def _sensors(roots: Roots) -> Iterator[Row]:
    for chip in _folders(roots.sys / "class/hwmon", "hwmon*"):
        name = _text(chip / "name").strip() or chip.name
        for path in _folders(chip, "temp*_input"):
            value = _number(path)
            if value is not None:
                sensor = path.name.removesuffix("_input")
                label = _text(chip / f"{sensor}_label").strip()
                yield Row("sys.hwmon", value / 1000, {"chip": name, "sensor": sensor, "label": label})


def _frequencies(roots: Roots) -> Iterator[Row]:
    cpus = _folders(roots.sys / "devices/system/cpu", "cpu[0-9]*")
    if len(cpus) > _MOST_CPUS:
        return
    for folder in cpus:
        value = _number(folder / "cpufreq/scaling_cur_freq")
        if value is not None:
            yield Row("sys.freq.cpu", value * 1000, {"cpu": folder.name.removeprefix("cpu")})


def _power(roots: Roots) -> Iterator[tuple[str, int]]:
    """Sensor's name and its milliwatts."""
    for chip in _folders(roots.sys / "class/hwmon", "hwmon*"):
        name = _text(chip / "name").strip() or chip.name
        for path in [*_folders(chip, "power*_input"), *_folders(chip, "power*_average")]:
            value = _number(path)  # microwatts
            if value is not None:
                rail = path.name.partition("_")[0]
                yield (_text(chip / f"{rail}_label").strip() or f"{name}_{rail}").lower(), value // 1000
        # INA3221 of a Jetson with JetPack 5 and later: millivolts and milliamperes of each rail
        for path in _folders(chip, "in*_label"):
            rail = path.name.removeprefix("in").removesuffix("_label")
            volts, amperes = _number(chip / f"in{rail}_input"), _number(chip / f"curr{rail}_input")
            if volts is not None and amperes is not None:
                yield _text(path).strip().lower(), volts * amperes // 1000
    # JetPack 4: milliwatts
    for chip in _folders(roots.sys / "bus/i2c/drivers/ina3221x", "*/iio:device*"):
        for path in _folders(chip, "rail_name_*"):
            value = _number(chip / f"in_power{path.name.removeprefix('rail_name_')}_input")
            if value is not None:
                yield _text(path).strip().lower(), value


def _tegra(roots: Roots, rows: list[Row], power: list[tuple[str, int]], past: Past) -> Iterator[Row]:
    """By NVIDIA's files in /sys; written after their documentation, not tried on such a machine."""
    for cpu, ticks in _ticks(roots).items():
        busy, total = sum(ticks) - ticks[3] - ticks[4], sum(ticks)
        before = past.ticks.get(cpu)
        past.ticks[cpu] = busy, total
        if before is not None and total > before[1]:
            share = 100 * (busy - before[0]) / (total - before[1])
            yield Row("tegra_cpu_util_percentage", share, {"cpu": cpu})
    memory = {}
    for row in rows:
        memory[row.name] = row.value
        if row.name == "sys.freq.cpu":
            yield Row("tegra_cpu_frequency_hz", row.value, row.meta)
        elif row.name == "sys.thermal":
            yield Row("tegra_temperature_celcius", row.value, {"sensor": row.meta["type"]})
    if "sys.mem.total" in memory and "sys.mem.avail" in memory:
        yield Row("tegra_ram_total_bytes", memory["sys.mem.total"], {})
        yield Row("tegra_ram_used_bytes", memory["sys.mem.total"] - memory["sys.mem.avail"], {})
    for folder in _folders(roots.sys / "class/devfreq", "*"):
        value = _number(folder / "cur_freq")
        if value is not None and re.search(r"gpu|gv11b|gp10b|ga10b|gm20b", folder.name):
            yield Row("tegra_gpu_frequency_hz", value, {})
            break
    for path in ("devices/gpu.0/load", "devices/platform/gpu.0/load", "devices/platform/bus@0/gpu.0/load"):
        value = _number(roots.sys / path)  # in thousandths
        if value is not None:
            yield Row("tegra_gpu_util_percentage", value / 10, {})
            break
    for name, milliwatts in power:
        count, mean = past.power.get(name, (0, 0.0))
        past.power[name] = count + 1, mean + (milliwatts - mean) / (count + 1)
        yield Row("tegra_wattage_current_milliwatts", milliwatts, {"sensor": name})
        yield Row("tegra_wattage_average_milliwatts", past.power[name][1], {"sensor": name})


def _folders(top: Path, pattern: str) -> list[Path]:
    """What matches, in the order of the numbers in their names."""
    try:
        found = list(top.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])[:_MOST]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_LARGEST).decode(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split() if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", word)]
