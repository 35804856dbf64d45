# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file as plain processes of this user, for development: no container, no image.

In the folder ``native/`` of the state folder lie the plan and the status of a supervisor, which runs them, a pid file a
service and ``logs/<service>.log``.  What makes containers different does not count here: images, networks, mounts,
users, limits of memory.  A service sees of the environment what the Compose file says, and PATH, HOME and LANG.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from groundwork import console, files, process
from groundwork.errors import InputError, SageError, unknown
from virtual_waggle import compose, supervisor
from virtual_waggle.compose_model import Service, Stack
from virtual_waggle.forms import Deployment, Row
from virtual_waggle.supervisor import Check, Planned

DEADLINE = 180.0  # seconds until all services are ready
_CRASHES = 3  # restarts after which a service counts as one that does not start
_STOP = 30.0  # seconds beyond the services' own that the supervisor has to end
_LOCK_WAIT = 300.0  # seconds for another command on the same folder
_LINES = 15  # of a log, in an error
_FOLDER = "native"
_SECRETS = "WAGGLE_SECRETS_DIGEST"  # in a service's environment; in the form of containers it makes their label
_PACKAGES = {"rabbitmq-server": "rabbitmq-server", "rsync": "rsync", "sshd": "openssh-server"}


def up(given: Deployment, *, deadline: float = DEADLINE) -> list[Row]:
    """Start what does not run, and return when all services are ready.

    Safe to call again and by two at once.  Where it fails or is interrupted, what it started is stopped again.
    """
    folder = _folder(given)
    plan = _plan(given)
    with _locked(folder):
        text = supervisor.write_plan(plan)
        running = _supervisor(folder)
        if running is not None and _read(folder / supervisor.PLAN) == text:
            return _wait(given, folder, plan, running, deadline)
        if running is not None:
            console.say("the services are to run in another way than they do: they are started anew")
        _end(folder)
        try:
            pid = _begin(folder, text)
            return _wait(given, folder, plan, pid, deadline)
        except BaseException:  # also when interrupted
            _end(folder)
            raise


def down(given: Deployment) -> None:
    """Stop all services, and whatever they left running.  Nothing runs: nothing to do."""
    folder = _folder(given)
    if folder.is_dir():
        with _locked(folder):
            _end(folder)


def status(given: Deployment) -> list[Row]:
    """How each service does."""
    folder = _folder(given)
    names = [service.name for service in _services(given)]
    if not folder.is_dir() or _supervisor(folder) is None:
        return [Row(name, "stopped") for name in names]
    rows = {row.service: row for row in _rows(folder)}
    return [*rows.values(), *(Row(name, "stopped") for name in names if name not in rows)]


def logs(given: Deployment, services: Sequence[str] = (), *, follow: bool = False, lines: int = 100) -> Iterator[str]:
    """The last lines of the services' logs, each with the service's name before it; with ``follow`` those to come."""
    folder = _folder(given)
    known = [service.name for service in _services(given)]
    for name in services:
        if name not in known:
            raise unknown("service", name, known)
    tails = [_Tail(name, folder / "logs" / f"{name}.log") for name in services or known]
    width = max(len(tail.name) for tail in tails)
    for tail in tails:
        for line in files.tail(tail.path, lines).splitlines():
            yield f"{tail.name:{width}} | {line}"
        tail.to_end()
    while follow:
        for tail in tails:
            for line in tail.more():
                yield f"{tail.name:{width}} | {line}"
        time.sleep(0.3)


@dataclass
class _Tail:
    """A log that is read on; ``inode`` and ``offset`` tell how far it was read."""

    name: str
    path: Path
    inode: int = 0
    offset: int = 0
    rest: bytes = b""

    def to_end(self) -> None:
        if self.path.exists():
            found = self.path.stat()
            self.inode, self.offset = found.st_ino, found.st_size

    def more(self) -> list[str]:
        """Whole lines that came since."""
        try:
            with self.path.open("rb") as stream:
                inode = os.fstat(stream.fileno()).st_ino
                if inode != self.inode:  # a new file, the old one is full
                    self.inode, self.offset = inode, 0
                stream.seek(self.offset)
                data = stream.read(1 << 20)
        except FileNotFoundError:
            return []
        self.offset += len(data)
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


# ---------------------------------------------------------------------------------------------------------- the plan


def _stack(given: Deployment) -> Stack:
    return compose.load(given.compose_file, given.variables, name=given.name)


def _services(given: Deployment) -> list[Service]:
    return compose.selected(_stack(given), given.profiles)


def _digest(stack: Stack, service: Service) -> str:
    """Of what the secrets of a service hold, "" where it has none: with other ones it is to be started anew."""
    secrets = [stack.secrets[grant.source] for grant in service.secrets if grant.source in stack.secrets]
    return files.digest_text(*(f"{secret.file} {secret.content!r}" for secret in secrets)) if secrets else ""


def _plan(given: Deployment) -> list[Planned]:
    """What is to run, in its order.  Raises InputError for what can't run as a plain process."""
    stack = _stack(given)
    services = compose.selected(stack, given.profiles)
    names = {service.name for service in services}
    plan = []
    for service in services:
        command = (*(service.entrypoint or ()), *(service.command or ()))
        if not command:
            raise InputError(
                f"{service.place}: services.{service.name}: has no command: as a plain process it needs one",
                hint="that of its image is not known here",
            )
        home = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "USER") if name in os.environ}
        environment = {"PATH": _search_path(), "PYTHONPATH": _own_folder(), **home, **compose.environment(service)}
        if digest := _digest(stack, service):
            environment[_SECRETS] = digest
        check = None
        if found := service.healthcheck:
            test = _resolved(found.test, environment["PATH"], service)
            check = Check(test, found.interval, found.timeout, found.start_period, found.retries)
        folder = Path(service.working_dir)
        plan.append(
            Planned(
                name=service.name,
                command=_resolved(command, environment["PATH"], service),
                environment=environment,
                folder=str(folder if service.working_dir and folder.is_dir() else given.folder),
                after=tuple((one.service, str(one.condition)) for one in service.depends_on if one.service in names),
                check=check,
                restart=service.restart,
                restart_attempts=service.restart_attempts,
                stop_signal=_signal(service),
                grace=service.stop_grace_period,
            )
        )
    return plan


def _search_path() -> str:
    """PATH, with the folder of this Python before it, so that ``python3`` is this one."""
    return f"{Path(sys.executable).parent}:{process.search_path()}"


def _own_folder() -> str:
    """Where this project's packages lie."""
    return str(Path(__file__).parents[1])


def _resolved(command: Sequence[str], path: str, service: Service) -> tuple[str, ...]:
    program = shutil.which(command[0], path=path)
    if program is None:
        package = _PACKAGES.get(command[0], command[0])
        raise InputError(
            f"{service.place}: services.{service.name}: missing program {command[0]}",
            hint=f"install it, perhaps with: apt-get install {package}",
        )
    return (program, *command[1:])


def _signal(service: Service) -> int:
    text = service.stop_signal.upper()
    if not text:
        return signal.SIGTERM
    try:
        return signal.Signals(int(text)) if text.isdigit() else signal.Signals[f"SIG{text.removeprefix('SIG')}"]
    except (KeyError, ValueError):
        place = service.places["stop_signal"]
        raise InputError(f"{place}: services.{service.name}.stop_signal: no signal {text!r}") from None


# ----------------------------------------------------------------------------------------------------- the supervisor


def _folder(given: Deployment) -> Path:
    return given.folder / _FOLDER


def _locked(folder: Path) -> AbstractContextManager[None]:
    def told(owner: str) -> None:
        console.say(f"waiting for another command (pid {owner}) that is at these services")

    return files.lock(folder / "command.lock", wait=_LOCK_WAIT, on_wait=told)


def _supervisor(folder: Path) -> int | None:
    """The pid of the supervisor, if one runs: it holds its lock alone."""
    for _ in process.poll_until(5.0, 0.05):
        try:
            with files.lock(folder / supervisor.LOCK, shared=True):
                return None
        except files.Locked as locked:
            pid = int(locked.owner) if locked.owner.isdigit() else 0
        if _is_marked(pid, folder):  # else it has the lock and has not written its pid yet
            return pid
    raise SageError(f"the supervisor of the services in {folder} does not tell its pid", hint="try again")


def _begin(folder: Path, plan: str) -> int:
    files.make_folder(folder / "logs")
    (folder / supervisor.STATUS).unlink(missing_ok=True)
    files.write_text(folder / supervisor.PLAN, plan, mode=0o600)  # other people's files may have secrets in it
    log = folder / "logs/supervisor.log"
    if log.exists() and log.stat().st_size > supervisor.LARGEST_LOG:
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("ab") as output:
        started = process.start(
            [sys.executable, "-m", "virtual_waggle.supervisor", folder],
            stdout=output,
            stderr=output,
            env={"PYTHONPATH": _own_folder(), supervisor.MARK: str(folder)},
            cwd=folder,
            outlive=True,
        )
    return started.pid


def _wait(given: Deployment, folder: Path, plan: Sequence[Planned], pid: int, deadline: float) -> list[Row]:
    """Until all are ready.  Raises SageError as soon as one can't get so."""
    with console.stage(f"services of {given.name}", brief=True) as stage:
        rows: list[Row] = []
        for _ in process.poll_until(deadline, 0.1):
            rows = _rows(folder)
            waiting = [row.service for row in rows if not row.ready] or ([] if rows else ["the supervisor"])
            if rows and not waiting and _settled(rows, plan):
                return rows
            stage.detail(f"waiting for {', '.join(waiting)}" if waiting else "")
            for row in rows:
                _check(row, folder)
            if process.identity(pid) is None:
                raise _failure("the supervisor of the services ended", folder / "logs/supervisor.log")
        late = [row.service for row in rows if not row.ready] or ["the supervisor"]
        raise _failure(f"{files.join_names(late)} did not get ready within {deadline:g} s", _log(folder, late[0]))


def _settled(rows: Sequence[Row], plan: Sequence[Planned]) -> bool:
    """Of what has no health test it is enough that it ran for a second."""
    unseen = {planned.name for planned in plan if planned.check is None}
    latest = max((row.since for row in rows if row.service in unseen), default="")
    return latest < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))


def _check(row: Row, folder: Path) -> None:
    log = _log(folder, row.service)
    if row.state == "exited" and row.exit_code != 0:
        raise _failure(f"{row.service} ended with status {row.exit_code}", log)
    if row.restarts >= _CRASHES and row.state != "running":
        raise _failure(f"{row.service} ended {row.restarts} times, the last time with status {row.exit_code}", log)
    if row.health == "unhealthy":
        raise _failure(f"{row.service} is unhealthy", log)


def _failure(message: str, log: Path) -> SageError:
    last = files.tail(log, _LINES)
    return SageError(message + (f"; it said last:\n{last}" if last else ""), hint=f"see {log}")


def _log(folder: Path, service: str) -> Path:
    return folder / "logs" / (f"{service}.log" if not service.startswith("the ") else "supervisor.log")


def _rows(folder: Path) -> list[Row]:
    text = _read(folder / supervisor.STATUS)
    return [Row(**row) for row in json.loads(text)] if text else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _end(folder: Path) -> None:
    """Stop the supervisor and with it all services; then what a killed supervisor may have left."""
    pid = _supervisor(folder)
    if pid is not None:
        plan = supervisor.read_plan(_read(folder / supervisor.PLAN) or "[]")
        patience = sum(planned.grace for planned in plan) + _STOP
        with console.stage("stopping the services", brief=True):
            os.kill(pid, signal.SIGTERM)
            for _ in process.poll_until(patience, 0.05):
                if _supervisor(folder) is None:
                    break
            else:
                os.kill(pid, signal.SIGKILL)
    supervisor.end_processes(lambda: _marked(folder), 10.0)
    for left in (*folder.glob("*.pid"), folder / supervisor.STATUS):
        left.unlink(missing_ok=True)


def _marked(folder: Path) -> list[int]:
    """Our processes, by the variable that each has."""
    pids = (int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _is_marked(pid, folder)]


def _is_marked(pid: int, folder: Path) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False
    return f"{supervisor.MARK}={folder}".encode() in variables and process.identity(pid) is not None
