# SPDX-License-Identifier: Apache-2.0
"""The table of this package's settings: flags and environment variables."""

import os
from pathlib import Path

from groundwork.settings import Setting, folder, one_of, whole_number
from local_chameleon.profiles import DEFAULT_PORT, PORTS, PROFILES


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "sage-chameleon"


STATE_DIR = Setting(
    "state-dir",
    "where the images, databases, logs and clouds.yaml are kept",
    folder,
    default=_xdg("XDG_STATE_HOME", ".local/state") / "local-chameleon",
)
ENV_DIR = Setting(
    "env-dir",
    "where OpenStack is installed to",
    folder,
    default=_xdg("XDG_CACHE_HOME", ".cache") / "local-chameleon-env",
)
PROFILE = Setting("profile", "which services there are", one_of("profile", PROFILES), default="images", only_flag=True)
PORT = Setting(
    "port",
    f"the first of {PORTS} ports on 127.0.0.1; without it the one the state was made with, or {DEFAULT_PORT}",
    whole_number(1024, 65535 - PORTS),
    only_flag=True,
)
ALLOW_PUBLIC = Setting(
    "allow-public",
    "let every user make images public, which by itself only an administrator may; takes effect with each up",
    switch=True,
    only_flag=True,
)
PURGE = Setting("purge", "remove the images, databases and clouds.yaml as well", switch=True, only_flag=True)
JSON = Setting("json", "print the result as JSON", switch=True, only_flag=True)
QUIET = Setting("quiet", "no progress, only warnings, errors and the result", switch=True)
DEBUG = Setting("debug", "log what is done and show tracebacks", switch=True)

PLACES = (STATE_DIR, ENV_DIR, PROFILE)
COMMON = (JSON, QUIET, DEBUG)
UP = (PORT, ALLOW_PUBLIC, *PLACES, *COMMON)
DOWN = (PURGE, *PLACES, *COMMON)
STATUS = (*PLACES, *COMMON)
