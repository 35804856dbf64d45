"""Waggle plugin: publishes a count, every so often."""

import argparse
import time

try:
    from waggle.plugin import Plugin
except ImportError:  # built without PyPI, or run on a machine without pywaggle
    from virtual_waggle.plugin import Plugin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between measurements")
    parser.add_argument("--count", type=int, default=0, help="how often; 0: without end")
    given = parser.parse_args()
    done = 0
    with Plugin() as plugin:
        while True:
            done += 1
            plugin.publish("example.count", done, meta={"plugin_says": "hello"})
            if done == given.count:
                return
            time.sleep(given.interval)


if __name__ == "__main__":
    main()
