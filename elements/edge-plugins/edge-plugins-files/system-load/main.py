# SPDX-License-Identifier: Apache-2.0
"""Waggle plugin: publishes load, memory and uptime of the machine it runs on."""

import argparse
import time
from pathlib import Path

try:
    from waggle.plugin import Plugin
except ImportError:  # built where PyPI can't be reached
    from virtual_waggle.plugin import Plugin

PROC = Path("/proc")


def measure(proc=PROC):
    """The measurements by name; memory in bytes, uptime in seconds."""
    one, five, fifteen = (proc / "loadavg").read_text().split()[:3]
    memory = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    return {
        "system.load1": float(one),
        "system.load5": float(five),
        "system.load15": float(fifteen),
        "system.mem.total": int(memory["MemTotal"].split()[0]) * 1024,
        "system.mem.available": int(memory["MemAvailable"].split()[0]) * 1024,
        "system.uptime": float((proc / "uptime").read_text().split()[0]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between measurements")
    parser.add_argument("--count", type=int, default=0, help="how often; 0: without end")
    given = parser.parse_args()
    done = 0
    with Plugin() as plugin:
        while True:
            now = time.time_ns()
            for name, value in measure().items():
                plugin.publish(name, value, timestamp=now)
            done += 1
            if done == given.count:
                return
            time.sleep(given.interval)


if __name__ == "__main__":
    main()
