# SPDX-License-Identifier: Apache-2.0
"""Compose files as people write them, and a reader of them for the tests."""

from pathlib import Path

from virtual_waggle import compose
from virtual_waggle.compose_model import Stack

FOLDER = Path(__file__).parent
SHAPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
VARIABLES = {"MYSQL_USER": "wp", "TOKEN": "a token", "HOME": "/home/someone"}


def shape(name: str) -> Stack:
    return compose.load(FOLDER / f"{name}.yaml", VARIABLES)
