# SPDX-License-Identifier: Apache-2.0
"""The process that runs services as plain processes: starts them in their order, looks after their health, starts
those again that end, writes their logs, and stops them all when it is told to.

``python3 -m virtual_waggle.supervisor FOLDER`` does what FOLDER/plan.json says until SIGTERM.  It holds a lock on
FOLDER/supervisor.lock as long as it lives.  Its services die with it, even with ``kill -9``; what they leave running
becomes its own child, and is stopped too.  One thread alone: the kernel kills a child with the *thread* it came from.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from groundwork import files, process
from virtual_waggle.compose_model import Condition

logger = logging.getLogger(__name__)

PLAN, STATUS, LOCK = "plan.json", "status.json", "supervisor.lock"
MARK = "VIRTUAL_WAGGLE_NATIVE"  # a variable that all our processes have: the folder that they belong to

LARGEST_LOG = 4 << 20  # bytes; then it becomes <service>.log.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 60.0  # seconds before a service is started again
_SETTLED = 10.0  # seconds after which a service's next end counts as its first
_EAGER = 1.0  # seconds between tests of a service that has not been healthy yet
_TICK = 0.5  # seconds
_ORPHANS = 10.0  # seconds that what services left running has to end


@dataclass(frozen=True)
class Check:
    """A health test: a command, and times in seconds."""

    test: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    retries: int


@dataclass(frozen=True)
class Planned:
    """A service as a process.  ``after`` is pairs of a service and a condition, as in Compose."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    after: tuple[tuple[str, str], ...] = ()
    check: Check | None = None
    restart: str = ""
    restart_attempts: int | None = None
    stop_signal: int = signal.SIGTERM
    grace: float = 10.0


@dataclass
class _Service:
    """A planned service and how it does; times are of the monotonic clock."""

    plan: Planned
    state: str = "waiting"
    health: str = ""
    since: str = ""
    restarts: int = 0
    exit_code: int | None = None
    child: "subprocess.Popen[bytes] | None" = None
    log: IO[bytes] | None = None
    begun: float = 0.0
    start_at: float = 0.0
    pause: float = _FIRST_PAUSE
    attempts: int = 0
    test: "subprocess.Popen[bytes] | None" = None
    test_at: float = 0.0
    test_until: float = 0.0
    failures: int = 0
    kill_at: float | None = None
    done: bool = field(default=False)  # will not be started again


def write_plan(services: Sequence[Planned]) -> str:
    """The plan as JSON."""
    return json.dumps([asdict(service) for service in services], indent=1) + "\n"


def read_plan(text: str) -> list[Planned]:
    """The services of a plan."""
    found = []
    for row in json.loads(text):
        check = row.pop("check")
        if check:
            check = Check(**{**check, "test": tuple(check["test"])})
        row["after"] = tuple((name, condition) for name, condition in row["after"])
        found.append(Planned(**{**row, "command": tuple(row["command"]), "check": check}))
    return found


class Supervisor:
    """The services of a plan, from their start to their end."""

    def __init__(self, folder: Path, plan: Sequence[Planned]) -> None:
        self.folder = folder
        self.services = {planned.name: _Service(planned) for planned in plan}
        self.stopping = False
        self.told = ""

    def run(self) -> None:
        """Until :meth:`stop` was called and all have ended."""
        # A signal's arrival ends the wait for whatever comes next.
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            while True:
                for service in self.services.values():
                    self.look_at(service)
                process.reap_orphans(self.ours())
                self.tell()
                if self.stopping and not any(service.child for service in self.services.values()):
                    break
                self.wait(wake)
        finally:
            self.end_all()
            self.tell()

    def stop(self) -> None:
        """Begin to stop all, each before what it depends on."""
        self.stopping = True

    def ours(self) -> "list[subprocess.Popen[bytes]]":
        both = [child for service in self.services.values() for child in (service.child, service.test)]
        return [child for child in both if child is not None]

    def wait(self, wake: int) -> None:
        """Until something happens, copying what services say into their logs."""
        outputs = {
            service.child.stdout.fileno(): service
            for service in self.services.values()
            if service.child is not None and service.child.stdout is not None and not service.child.stdout.closed
        }
        ready, _, _ = select.select([wake, *outputs], [], [], _TICK)
        for descriptor in ready:
            if descriptor == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            else:
                self.copy(outputs[descriptor])

    # --------------------------------------------------------------------------------------------------- one service

    def look_at(self, service: _Service) -> None:
        """Do what is due."""
        now = time.monotonic()
        if service.child is not None and service.child.poll() is not None:
            self.ended(service, service.child, now)
        if service.child is not None:
            if self.stopping:
                self.end(service, now)
            else:
                self.examine(service, now)
        elif self.stopping:
            if service.state != "exited":
                self.become(service, "stopped")
        elif not service.done and now >= service.start_at and self.may_start(service):
            self.start(service, now)

    def may_start(self, service: _Service) -> bool:
        for name, condition in service.plan.after:
            other = self.services[name]
            if condition == Condition.HEALTHY:
                fits = other.health == "healthy"
            elif condition == Condition.COMPLETED:
                fits = other.state == "exited" and other.exit_code == 0
            else:
                fits = other.begun > 0
            if not fits:
                return False
        return True

    def start(self, service: _Service, now: float) -> None:
        plan = service.plan
        if service.log is None:
            service.log = self.log_path(service).open("ab", buffering=0)
        try:
            service.child = process.start(
                plan.command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**plan.environment, MARK: str(self.folder)},
                cwd=Path(plan.folder),
                inherit=False,
            )
        except Exception as error:  # no such program or folder: told, and tried again as one that ends at once
            logger.warning("%s: can't be started: %s", plan.name, error)
            self.failed(service, now, 127)
            return
        assert service.child.stdout is not None
        os.set_blocking(service.child.stdout.fileno(), False)
        service.begun = now
        service.failures = 0
        service.test_at = now
        service.exit_code = None
        self.become(service, "running", health="starting" if plan.check else "")
        identity = process.identity(service.child.pid)
        files.write_text(self.folder / f"{plan.name}.pid", f"{service.child.pid} {identity}\n")
        logger.info("%s: started, pid %d", plan.name, service.child.pid)

    def ended(self, service: _Service, child: "subprocess.Popen[bytes]", now: float) -> None:
        self.copy(service)
        # What it started in its own group ends with it.
        process.signal_group(child, signal.SIGKILL)
        if child.stdout is not None:
            child.stdout.close()
        self.drop_test(service)
        service.child = None
        service.kill_at = None
        (self.folder / f"{service.plan.name}.pid").unlink(missing_ok=True)
        logger.info("%s: ended with status %d", service.plan.name, child.returncode)
        if now - service.begun >= _SETTLED:
            service.pause, service.attempts = _FIRST_PAUSE, 0
        self.failed(service, now, child.returncode)

    def failed(self, service: _Service, now: float, code: int) -> None:
        """It does not run: start it again after a pause, or let it be."""
        plan = service.plan
        service.exit_code = code
        again = plan.restart in ("always", "unless-stopped") or (plan.restart == "on-failure" and code != 0)
        if plan.restart_attempts is not None and service.attempts >= plan.restart_attempts:
            again = False
        if self.stopping or not again:
            service.done = True
            self.become(service, "stopped" if self.stopping else "exited")
            return
        service.attempts += 1
        service.restarts += 1
        service.start_at = now + service.pause
        service.pause = min(service.pause * 2, _LONGEST_PAUSE)
        self.become(service, "restarting")

    def end(self, service: _Service, now: float) -> None:
        """Stop it as soon as nothing that depends on it runs."""
        assert service.child is not None
        if service.kill_at is None:
            needed = any(
                other.child is not None and any(name == service.plan.name for name, _ in other.plan.after)
                for other in self.services.values()
            )
            if not needed:
                self.drop_test(service)
                process.signal_group(service.child, signal.Signals(service.plan.stop_signal))
                service.kill_at = now + service.plan.grace
        elif now >= service.kill_at:
            logger.warning("%s: did not end within %g s, is killed", service.plan.name, service.plan.grace)
            process.signal_group(service.child, signal.SIGKILL)

    # -------------------------------------------------------------------------------------------------------- health

    def examine(self, service: _Service, now: float) -> None:
        check = service.plan.check
        if check is None:
            return
        if service.test is not None:
            code = service.test.poll()
            if code is None and now < service.test_until:
                return
            self.drop_test(service)
            self.tested(service, check, now, well=code == 0)
        elif now >= service.test_at:
            try:
                service.test = process.start(
                    check.test,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**service.plan.environment, MARK: str(self.folder)},
                    cwd=Path(service.plan.folder),
                    inherit=False,
                )
            except Exception as error:
                logger.warning("%s: its test can't be started: %s", service.plan.name, error)
                self.tested(service, check, now, well=False)
            service.test_until = now + check.timeout

    def tested(self, service: _Service, check: Check, now: float, *, well: bool) -> None:
        if well:
            service.failures = 0
            health = "healthy"
        else:
            # Failures while it starts do not count, as with Docker.
            counts = service.health == "healthy" or now - service.begun >= check.start_period
            service.failures += counts
            health = "unhealthy" if service.failures >= check.retries else service.health
        service.test_at = now + (min(check.interval, _EAGER) if health == "starting" else check.interval)
        if health != service.health:
            self.become(service, service.state, health=health)
            logger.info("%s: %s", service.plan.name, health)

    def drop_test(self, service: _Service) -> None:
        if service.test is not None:
            process.stop(service.test, patience=0)
            service.test = None

    # ---------------------------------------------------------------------------------------------- logs and status

    def log_path(self, service: _Service) -> Path:
        return self.folder / "logs" / f"{service.plan.name}.log"

    def copy(self, service: _Service) -> None:
        """What it said, into its log; a full disk costs the log, not the service."""
        if service.child is None or service.log is None:
            return
        output = service.child.stdout
        if output is None or output.closed:
            return
        for _ in range(64):  # others want their turn
            try:
                data = os.read(output.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not data:  # it closed its outputs, and may go on
                output.close()
                return
            try:
                service.log.write(data)
                if service.log.tell() >= LARGEST_LOG:
                    path = self.log_path(service)
                    service.log.close()
                    path.replace(path.with_name(f"{path.name}.1"))
                    service.log = path.open("ab", buffering=0)
            except OSError as error:
                logger.warning("%s: its log can't be written: %s", service.plan.name, error)
                if service.log.closed:
                    service.log = None
                    return

    def become(self, service: _Service, state: str, *, health: str = "") -> None:
        if (service.state, service.health) != (state, health) or not service.since:
            service.since = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        service.state, service.health = state, health

    def tell(self) -> None:
        """Write how all do, where that has changed."""
        rows = [
            {
                "service": name,
                "state": service.state,
                "health": service.health,
                "since": service.since,
                "restarts": service.restarts,
                "exit_code": service.exit_code,
            }
            for name, service in self.services.items()
        ]
        text = json.dumps(rows, indent=1) + "\n"
        if text != self.told:
            try:
                files.write_text(self.folder / STATUS, text)
            except OSError as error:  # a full disk: tried again with the next change
                logger.warning("%s can't be written: %s", STATUS, error)
                return
            self.told = text

    def end_all(self) -> None:
        """Kill what is left, whatever happened."""
        for service in self.services.values():
            self.drop_test(service)
            if service.child is not None:
                process.stop(service.child, patience=0)
                service.child = None
                service.state = "stopped"
        end_processes(self.adopted, _ORPHANS)

    def adopted(self) -> list[int]:
        """What services left running."""
        process.reap_orphans(())
        return process.children(os.getpid())


def end_processes(find: Callable[[], list[int]], patience: float) -> None:
    """SIGTERM to all that ``find`` finds, SIGKILL after half of ``patience`` seconds; until nothing is found."""
    told: set[int] = set()
    for elapsed in process.poll_until(patience, 0.05):
        found = find()
        if not found:
            return
        for pid in found:
            number = signal.SIGTERM if elapsed < patience / 2 else signal.SIGKILL
            if pid not in told or number == signal.SIGKILL:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
    logger.warning("still there: %s", find())


def main(folder: Path) -> int:
    """Run the plan of a folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with files.lock(folder / LOCK, wait=10):  # others look for a moment whether it is held
        process.adopt_orphans()
        Supervisor(folder, read_plan((folder / PLAN).read_text(encoding="utf-8"))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
