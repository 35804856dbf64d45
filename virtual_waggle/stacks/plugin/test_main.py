"""Run it: python3 -m pytest test_main.py, or python3 test_main.py.  No Waggle node is needed."""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch


def test_it_publishes_its_count() -> None:
    main = Path(__file__).with_name("main.py")
    with tempfile.TemporaryDirectory() as folder:
        nowhere = {"PYWAGGLE_LOG_DIR": folder, "WAGGLE_PLUGIN_HOST": "127.0.0.1", "WAGGLE_PLUGIN_PORT": "9"}
        words = [str(main), "--count", "2", "--interval", "0"]
        with patch.dict(os.environ, nowhere), patch.object(sys, "argv", words):
            runpy.run_path(str(main), run_name="__main__")
        rows = [json.loads(line) for line in Path(folder, "data.ndjson").read_text().splitlines()]
    assert [(row["name"], row["value"]) for row in rows] == [("example.count", 1), ("example.count", 2)]


if __name__ == "__main__":
    test_it_publishes_its_count()
