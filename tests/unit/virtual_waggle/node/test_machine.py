# SPDX-License-Identifier: Apache-2.0
"""What is measured of a machine, by trees of the kernel's files."""

import os
from pathlib import Path

import pytest

from virtual_waggle import message
from virtual_waggle.node import machine
from virtual_waggle.node.machine import Past, Roots

NOW = 1_700_000_000_123_456_789
TICKS = os.sysconf("SC_CLK_TCK")
PROC = {
    "stat": "cpu  30 0 30 240 0 0 0 0 0 0\n"
    "cpu0 10 0 10 80 0 0 0 0 0 0\ncpu1 20 0 20 160 0 0 0 0 0 0\nintr 1 2\nbtime 1699990000\n",
    "uptime": "10000.25 5000.00\n",
    "loadavg": "0.50 1.25 2.00 1/100 1234\n",
    "meminfo": "MemTotal:  1000 kB\nMemFree:  200 kB\nMemAvailable:  600 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nHuge: x",
    "1/mounts": "/dev/sda1 / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/sda1 /var/lib/docker ext4 rw 0 0\n"
    "/dev/sdb1 /mnt/my\\040disk xfs rw 0 0\n/dev/sdc1 /not/there xfs rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
    "1/net/dev": "Inter-| Receive | Transmit\n face |bytes\n"
    "    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0\n  eth0: 2000 20 0 0 0 0 0 0 3000 30 0 0 0 0 0 0\n"
    "veth12ab: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n",
}
SYS = {
    "class/net/eth0/operstate": "up\n",
    "class/net/lo/operstate": "unknown\n",
    "class/thermal/thermal_zone0/type": "CPU-therm\n",
    "class/thermal/thermal_zone0/temp": "45500\n",
    "class/thermal/thermal_zone1/type": "broken\n",
    "class/thermal/thermal_zone1/temp": "\n",
    "class/hwmon/hwmon0/name": "coretemp\n",
    "class/hwmon/hwmon0/temp1_input": "51000\n",
    "class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    "class/hwmon/hwmon1/name": "power_meter\n",
    "class/hwmon/hwmon1/power1_average": "182000000\n",
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
}
JETSON = {
    "firmware/devicetree/base/compatible": "nvidia,p3509-0000+p3668-0001\0nvidia,tegra194\0",
    "class/devfreq/17000000.gv11b/cur_freq": "114750000\n",
    "devices/gpu.0/load": "375\n",
    "class/hwmon/hwmon2/name": "ina3221\n",
    "class/hwmon/hwmon2/in1_label": "VDD_IN\n",
    "class/hwmon/hwmon2/in1_input": "5000\n",
    "class/hwmon/hwmon2/curr1_input": "1000\n",
}
Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def plant(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    plant(tmp_path / "proc", PROC)
    plant(tmp_path / "sys", SYS)
    (tmp_path / "root/mnt/my disk").mkdir(parents=True)
    return Roots(tmp_path / "proc", tmp_path / "sys", tmp_path / "root")


def look(roots: Roots, past: Past | None = None) -> Found:
    found: Found = {}
    for measurement in machine.measure(roots, NOW, past or Past()):
        assert measurement.timestamp == NOW
        assert not isinstance(measurement.value, str | bytes)
        found[measurement.name, tuple(measurement.meta.items())] = measurement.value
    return found


def test_every_value_is_a_measurement_that_the_beehive_takes(roots: Roots) -> None:
    plant(roots.sys, JETSON)
    found = machine.measure(roots, NOW, Past())
    for measurement in found:
        assert message.decode(message.encode(measurement)) == measurement
        assert len(measurement.name) <= message.BEEHIVE_NAME
    series = [(measurement.name, tuple(measurement.meta.items())) for measurement in found]
    assert len(series) == len(set(series))


def test_times_loads_and_memory(roots: Roots) -> None:
    found = look(roots)
    assert found["sys.boot_time", ()] == 1699990000
    assert found["sys.uptime", ()] == 10000.25
    assert [found[f"sys.load{minutes}", ()] for minutes in (1, 5, 15)] == [0.5, 1.25, 2.0]
    assert found["sys.mem.total", ()] == 1000 * 1024
    assert found["sys.mem.avail", ()] == 600 * 1024
    assert found["sys.time", ()] == pytest.approx(NOW / 1e9)


def test_processors_are_told_of_one_by_one_by_mode(roots: Roots) -> None:
    found = look(roots)
    assert found["sys.cpu_seconds", (("cpu", "1"), ("mode", "idle"))] == 160 / TICKS
    assert ("sys.cpu_seconds", (("cpu", "all"), ("mode", "idle"))) not in found
    assert found["sys.freq.cpu", (("cpu", "0"),)] == 1_500_000_000


def test_of_very_many_processors_together(roots: Roots) -> None:
    lines = "".join(f"cpu{number} 1 0 0 9 0 0 0 0\n" for number in range(64))
    (roots.proc / "stat").write_text(f"cpu  64 0 0 576 0 0 0 0\n{lines}")
    rows = [key for key in look(roots) if key[0] == "sys.cpu_seconds"]
    assert {dict(meta)["cpu"] for _, meta in rows} == {"all"}


def test_file_systems_on_disk_once_each(roots: Roots) -> None:
    places = [dict(meta) for name, meta in look(roots) if name == "sys.fs.avail"]
    assert [(meta["device"], meta["mountpoint"]) for meta in places] == [
        ("/dev/sda1", "/"),
        ("/dev/sdb1", "/mnt/my disk"),
    ]


def test_network_devices_that_stay(roots: Roots) -> None:
    found = look(roots)
    assert found["sys.net.rx_bytes", (("device", "eth0"),)] == 2000
    assert found["sys.net.tx_packets", (("device", "eth0"),)] == 30
    assert found["sys.net.up", (("device", "eth0"),)] == 1
    assert ("sys.net.up", (("device", "lo"),)) not in found
    assert not [key for key in found if ("device", "veth12ab") in key[1]]


def test_temperatures_and_power(roots: Roots) -> None:
    found = look(roots)
    assert found["sys.thermal", (("type", "CPU-therm"), ("zone", "0"))] == 45.5
    assert len([key for key in found if key[0] == "sys.thermal"]) == 1
    chip = (("chip", "coretemp"), ("sensor", "temp1"), ("label", "Package id 0"))
    assert found["sys.hwmon", chip] == 51.0
    assert found["sys.power", (("name", "power_meter_power1"),)] == 182_000


def test_tegra_names_on_a_jetson_alone(roots: Roots) -> None:
    assert not [key for key in look(roots) if key[0].startswith("tegra_")]
    plant(roots.sys, JETSON)
    found = look(roots)
    assert found["tegra_gpu_frequency_hz", ()] == 114_750_000
    assert found["tegra_gpu_util_percentage", ()] == 37.5
    assert found["tegra_cpu_frequency_hz", (("cpu", "0"),)] == 1_500_000_000
    assert found["tegra_ram_used_bytes", ()] == 400 * 1024
    assert found["tegra_temperature_celcius", (("sensor", "CPU-therm"),)] == 45.5
    assert found["sys.power", (("name", "vdd_in"),)] == 5000


def test_a_jetsons_load_and_mean_power_are_of_the_time_between_looks(roots: Roots) -> None:
    plant(roots.sys, JETSON)
    past = Past()
    assert not [key for key in look(roots, past) if key[0] == "tegra_cpu_util_percentage"]
    (roots.proc / "stat").write_text("cpu0 60 0 10 130 0 0 0 0\n")
    plant(roots.sys, {"class/hwmon/hwmon2/curr1_input": "3000\n"})
    found = look(roots, past)
    assert found["tegra_cpu_util_percentage", (("cpu", "0"),)] == 50
    assert found["tegra_wattage_current_milliwatts", (("sensor", "vdd_in"),)] == 15_000
    assert found["tegra_wattage_average_milliwatts", (("sensor", "vdd_in"),)] == 10_000


def test_rails_of_an_older_jetson(roots: Roots) -> None:
    plant(roots.sys, {
        "bus/i2c/drivers/ina3221x/1-0040/iio:device0/rail_name_0": "VDD_IN\n",
        "bus/i2c/drivers/ina3221x/1-0040/iio:device0/in_power0_input": "4811\n",
    })  # fmt: skip
    assert look(roots)["sys.power", (("name", "vdd_in"),)] == 4811


@pytest.mark.parametrize("text", ["", "\0\xff\n", "cpu\n", "cpu0 a b c d e f g h\n", "-1 " * 30, "9" * 5000])
def test_files_that_are_not_as_expected_are_passed_over(tmp_path: Path, text: str) -> None:
    plant(tmp_path, {f"proc/{name}": text for name in PROC} | {f"sys/{name}": text for name in {**SYS, **JETSON}})
    for measurement in machine.measure(Roots(tmp_path / "proc", tmp_path / "sys", tmp_path), NOW, Past()):
        assert message.decode(message.encode(measurement)) == measurement


def test_a_machine_without_any_of_it_has_the_time_alone(tmp_path: Path) -> None:
    assert [row.name for row in machine.measure(Roots(tmp_path, tmp_path, tmp_path), NOW, Past())] == ["sys.time"]
