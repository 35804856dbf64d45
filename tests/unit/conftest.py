# SPDX-License-Identifier: Apache-2.0
"""Unit tests reach no network and start no process; and none takes a second."""

import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from hypothesis import find
from hypothesis import strategies as some


class ForbiddenError(Exception):
    """A unit test tried to leave its process."""


@pytest.fixture(autouse=True)
def stay_inside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise ForbiddenError("unit tests use no network and start no process")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(home))


@pytest.fixture(scope="session", autouse=True)
def table_of_unicode() -> None:
    """Made by hypothesis at its first text, in a fresh clone for seconds: in no test's time."""
    find(some.text(), lambda text: True)


@pytest.fixture(autouse=True)
def within_a_second(request: pytest.FixtureRequest) -> Iterator[None]:
    # CPU time of this process, and four times the second that a test has on one's own machine: a slow or busy
    # machine makes no test fail, and what is far too slow does.
    begin = time.process_time()
    yield
    if request.node.get_closest_marker("slow") is None:
        assert time.process_time() - begin < 4.0, "a unit test takes less than a second"
