# SPDX-License-Identifier: Apache-2.0
"""Services as plain processes: in their order, looked after, and none left behind, whatever happens."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundwork import files, process
from groundwork.errors import InputError, SageError
from tests.integration.waggle.native_command import deployment
from virtual_waggle import native, supervisor
from virtual_waggle.forms import Deployment, Row

WAIT = 60.0  # seconds, on a busy machine

# Notes in the file `order` that it starts, is healthy after a moment, and goes on.
SERVICE = """\
  {name}:
    image: any
    command: [python3, -c, "import os, time; open('order', 'a').write('{name} '); time.sleep(0.3);
      open('{name}.well', 'w').close(); print('{name} is well', flush=True); time.sleep(1000)"]
    healthcheck: {{test: [CMD, test, -e, {name}.well], interval: 1s, timeout: 10s, retries: 3, start_period: 60s}}
    restart: unless-stopped
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Deployment]]:
    """Writes a Compose file; what runs of it is stopped in the end."""
    given = deployment(tmp_path)
    files.make_folder(given.folder)

    def write(services: str) -> Deployment:
        given.compose_file.write_text(f"services:\n{services}")
        return given

    yield write
    if given.compose_file.exists():
        native.down(given)


def left(given: Deployment) -> list[int]:
    """Processes of these services, by what each has in its environment."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                environment = (place / "environ").read_bytes()
            except OSError:
                continue
            if f"{supervisor.MARK}={given.folder}/native".encode() in environment.split(b"\0"):
                found.append(int(place.name))
    return found


def pid_of(given: Deployment, service: str) -> int:
    return int((given.folder / f"native/{service}.pid").read_text().split()[0])


def row(given: Deployment, service: str) -> Row:
    return next(row for row in native.status(given) if row.service == service)


def until(holds: Callable[[], bool]) -> None:
    for _ in process.poll_until(WAIT, 0.05):
        if holds():
            return
    raise AssertionError("did not come about in time")


def test_services_start_in_their_order_and_leave_nothing(start: Callable[[str], Deployment]) -> None:
    last = SERVICE.format(name="last") + "    depends_on: {first: {condition: service_healthy}}\n"
    given = start(last + SERVICE.format(name="first"))
    assert [row.state for row in native.status(given)] == ["stopped", "stopped"]
    rows = native.up(given, deadline=WAIT)
    assert {row.service: (row.state, row.health) for row in rows} == {
        "first": ("running", "healthy"),
        "last": ("running", "healthy"),
    }
    assert (given.folder / "order").read_text() == "first last "
    assert native.status(given) == rows
    assert list(native.logs(given, ["first"])) == ["first | first is well"]
    assert len(left(given)) >= 3
    native.down(given)
    assert not left(given)
    assert not list((given.folder / "native").glob("*.pid"))
    native.down(given)


def test_up_again_changes_nothing_and_another_plan_starts_anew(start: Callable[[str], Deployment]) -> None:
    given = start(SERVICE.format(name="one"))
    native.up(given, deadline=WAIT)
    pid = pid_of(given, "one")
    native.up(given, deadline=WAIT)
    assert pid_of(given, "one") == pid
    start(SERVICE.format(name="one") + "    environment: {NEW: value}\n")
    native.up(given, deadline=WAIT)
    assert pid_of(given, "one") != pid
    environment = Path(f"/proc/{pid_of(given, 'one')}/environ").read_bytes()
    assert b"NEW=value" in environment.split(b"\0")


def test_what_a_file_of_its_secrets_says_is_taken_by_a_start_anew(start: Callable[[str], Deployment]) -> None:
    text = SERVICE.format(name="one") + "    secrets: [port]\nsecrets:\n  port: {file: ./port}\n"
    given = start(text)
    port = given.compose_file.with_name("port")
    port.write_text("5672")
    native.up(given, deadline=WAIT)
    pid = pid_of(given, "one")
    native.up(given, deadline=WAIT)
    assert pid_of(given, "one") == pid
    port.write_text("5673")
    native.up(given, deadline=WAIT)
    assert pid_of(given, "one") != pid


def test_two_at_once_start_it_once(start: Callable[[str], Deployment], tmp_path: Path) -> None:
    given = start(SERVICE.format(name="one"))
    command = [sys.executable, "-m", "tests.integration.waggle.native_command", str(tmp_path), "native"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait(WAIT) for one in both] == [0, 0]
    assert (given.folder / "order").read_text() == "one "
    assert row(given, "one").ready


def test_what_the_compose_file_says_is_all_of_its_environment(
    start: Callable[[str], Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMETHING_SECRET", "x")
    given = start(SERVICE.format(name="one") + "    environment: {MINE: 'a b'}\n")
    native.up(given, deadline=WAIT)
    found = Path(f"/proc/{pid_of(given, 'one')}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    names = {row.split(b"=")[0].decode() for row in found}
    assert {"MINE", "PATH", "PYTHONPATH", supervisor.MARK} <= names
    assert names <= {"MINE", "PATH", "PYTHONPATH", supervisor.MARK, "HOME", "LANG", "LC_ALL", "USER"}


def test_what_crashes_is_started_again(start: Callable[[str], Deployment]) -> None:
    given = start(SERVICE.format(name="one"))
    native.up(given, deadline=WAIT)
    first = pid_of(given, "one")
    os.kill(first, signal.SIGKILL)
    until(lambda: row(given, "one").restarts == 1 and row(given, "one").ready)
    assert pid_of(given, "one") != first


def test_what_is_to_end_once_ends_once(start: Callable[[str], Deployment]) -> None:
    given = start(
        SERVICE.format(name="main")
        + "    depends_on: {setup: {condition: service_completed_successfully}}\n"
        + "  setup: {image: any, restart: on-failure, command: [sh, -c, 'printf \"setup \" >> order']}\n"
    )
    rows = {row.service: row for row in native.up(given, deadline=WAIT)}
    assert (rows["setup"].state, rows["setup"].exit_code) == ("exited", 0)
    assert (given.folder / "order").read_text() == "setup main "


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("command: [sh, -c, 'echo all went wrong >&2; exit 3']\n    restart: 'no'", "ended with status 3"),
        ("command: [sh, -c, 'echo all went wrong >&2; exit 3']\n    restart: always", "the last time with status 3"),
        (
            "command: [sh, -c, 'echo all went wrong; exec sleep 1000']\n"
            "    healthcheck: {test: [CMD, 'false'], interval: 1s, retries: 2}",
            "is unhealthy",
        ),
    ],
)
def test_what_does_not_start_is_told_with_its_last_words(
    start: Callable[[str], Deployment], more: str, words: str
) -> None:
    given = start(SERVICE.format(name="fine") + f"  wrong:\n    image: any\n    {more}\n")
    with pytest.raises(SageError) as caught:
        native.up(given, deadline=WAIT)
    assert words in str(caught.value)
    assert "all went wrong" in str(caught.value)
    assert "wrong.log" in (caught.value.hint or "")
    assert not left(given)


def test_what_is_late_is_told(start: Callable[[str], Deployment]) -> None:
    given = start(
        "  slow: {image: any, command: [sleep, '1000'],"
        " healthcheck: {test: [CMD, 'false'], start_period: 1h, interval: 1s}}\n"
    )
    with pytest.raises(SageError, match="slow did not get ready within 2 s"):
        native.up(given, deadline=2)
    assert not left(given)


@pytest.mark.parametrize(
    ("service", "words"),
    [("{image: any}", "services.one: has no command"), ("{image: a, command: nosuch}", "missing program nosuch")],
)
def test_what_can_be_no_process_is_told_before_anything_starts(
    start: Callable[[str], Deployment], service: str, words: str
) -> None:
    given = start(f"  one: {service}\n")
    with pytest.raises(InputError, match=words):
        native.up(given)
    assert not left(given)


def test_an_interrupt_in_the_middle_leaves_nothing(start: Callable[[str], Deployment], tmp_path: Path) -> None:
    given = start(
        SERVICE.format(name="one")
        + "  slow: {image: any, command: [sleep, '1000'],"
        + " healthcheck: {test: [CMD, 'false'], start_period: 1h, interval: 1s}}\n"
    )
    command = [sys.executable, "-m", "tests.integration.waggle.native_command", str(tmp_path), "native"]
    running = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    until(lambda: (given.folder / "one.well").exists())
    running.send_signal(signal.SIGINT)
    assert running.wait(WAIT) == 128 + signal.SIGINT
    assert not left(given)


def test_services_outlive_the_command_and_its_terminal(start: Callable[[str], Deployment], tmp_path: Path) -> None:
    given = start(SERVICE.format(name="one"))
    command = [sys.executable, "-m", "tests.integration.waggle.native_command", str(tmp_path), "native"]
    running = subprocess.Popen(command, start_new_session=True)
    assert running.wait(WAIT) == 0
    assert os.getsid(pid_of(given, "one")) not in (os.getsid(0), running.pid)
    assert row(given, "one").ready


def test_no_daemon_is_left_and_no_stubborn_one(start: Callable[[str], Deployment]) -> None:
    given = start(
        "  daemon:\n    image: any\n"
        "    command: [sh, -c, 'setsid sleep 1001 > /dev/null 2>&1 & exec sleep 1000']\n"
        "  stubborn:\n    image: any\n    stop_grace_period: 1s\n"
        "    command: [python3, -c, 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        ' open("deaf", "w"); time.sleep(1000)\']\n'
        "    healthcheck: {test: [CMD, test, -e, deaf], interval: 1s, start_period: 60s}\n"
    )
    native.up(given, deadline=WAIT)
    assert len(left(given)) == 4  # the supervisor, the two, and the daemon
    native.down(given)
    assert not left(given)


def test_a_killed_supervisor_takes_its_services_along_and_up_starts_anew(
    start: Callable[[str], Deployment],
) -> None:
    given = start(
        SERVICE.format(name="one")
        + "  daemon:\n    image: any\n    command: [sh, -c, 'setsid sleep 1001 > /dev/null 2>&1 & exec sleep 1000']\n"
    )
    native.up(given, deadline=WAIT)
    one = pid_of(given, "one")
    os.kill(int((given.folder / "native" / supervisor.LOCK).read_text()), signal.SIGKILL)
    until(lambda: process.identity(one) is None)
    assert [row.state for row in native.status(given)] == ["stopped", "stopped"]
    native.up(given, deadline=WAIT)
    assert row(given, "one").ready
    assert len(left(given)) == 4
    native.down(given)
    assert not left(given)


def test_a_pid_of_another_process_is_never_taken_for_ours(start: Callable[[str], Deployment]) -> None:
    given = start(SERVICE.format(name="one"))
    with subprocess.Popen(["sleep", "1000"]) as other:
        files.make_folder(given.folder / "native")
        (given.folder / "native" / supervisor.LOCK).write_text(f"{other.pid}\n")
        (given.folder / "native/one.pid").write_text(f"{other.pid} old/1\n")
        native.down(given)
        assert other.poll() is None
        other.kill()


LOUD = """\
import time
for _ in range(100_000):
    print("x" * 99)
print("the end", flush=True)
while True:
    time.sleep(0.1)
    print("more", flush=True)
"""


def test_logs_are_bounded_and_followed(start: Callable[[str], Deployment]) -> None:
    given = start("  loud: {image: any, command: [python3, loud.py]}\n")
    (given.folder / "loud.py").write_text(LOUD)
    native.up(given, deadline=WAIT)
    folder = given.folder / "native/logs"
    until(lambda: "the end" in files.tail(folder / "loud.log", 1000))
    assert sum(path.stat().st_size for path in folder.glob("loud.log*")) < 3 * supervisor.LARGEST_LOG
    following = native.logs(given, follow=True, lines=1)
    assert [next(following) for _ in range(3)] == ["loud | more"] * 3
    with pytest.raises(InputError, match="unknown service 'lud'"):
        next(native.logs(given, ["lud"]))
