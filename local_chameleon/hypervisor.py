# SPDX-License-Identifier: Apache-2.0
"""A libvirt of our own, beside one that the machine may run already: on it the servers of profile ``boot`` run.

libvirtd has its places built in (/run, /etc/libvirt and so on).  So it runs in a mount namespace in which these are
folders of the state folder; clients reach it by its socket there.  It runs in a process namespace too: whatever ends
it, the kernel ends all of its machines with it, and nothing of them is left.

The service is this module as a program.  It starts ``unshare``, which starts this module again, with the word
``within``, as the first process of the new namespaces; that starts libvirtd and looks after orphans.  An HTTP server on
the service's port tells whether libvirtd answers.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from groundwork import files, process
from groundwork.errors import InputError, SageError
from local_chameleon import health
from local_chameleon.services import Service

NAME = "qemu"

# What libvirtd has built in -> the folder of the service's that it finds there.
_PLACES = {
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/cache/libvirt": "cache",
    "/var/log/libvirt": "log",
    "/run": "run",  # last: neither D-Bus nor systemd nor another libvirt is seen from within
}
# libvirt must know the user that machines would run as, whether they do or not; the package that makes it also starts
# the machine's own libvirt.
_USERS = {"passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin", "group": "libvirt-qemu:x:64055:"}
_DRIVERS = ("qemu", "nodedev", "secret")  # the others would look at the host's networks and firewalls
_MADE = "made.json"
_ENDED_WITHIN = 20.0  # seconds
_LONGEST_PATH = 100  # bytes of a socket's path; the kernel takes 107
_LIBVIRTD = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
"""
_QEMU = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""


def require(state_dir: Path) -> None:
    """Raise InputError where libvirt can't run here, or not with this state folder."""
    process.require("libvirtd", "qemu-system-x86_64", "qemu-img", "genisoimage", "unshare", "mount", "pkg-config")
    if find_drivers() is None:
        raise InputError(
            "libvirt's driver for QEMU is missing", hint="install with: apt-get install libvirt-daemon-driver-qemu"
        )
    if not process.run(["pkg-config", "--modversion", "libvirt"], check=False):
        raise InputError("libvirt's headers are missing", hint="install with: apt-get install libvirt-dev")
    if len(str(socket_path(state_dir / NAME)).encode()) > _LONGEST_PATH:
        raise InputError(f"{state_dir} is too long a path for libvirt's socket", hint="name another with --state-dir")
    if state_dir.is_relative_to("/run"):
        raise InputError(f"{state_dir} is in /run, which libvirt does not see", hint="name another with --state-dir")


def find_drivers() -> Path | None:
    """The folder of libvirt's drivers; None where the one for QEMU is not installed."""
    found = sorted(Path("/usr/lib").glob("**/libvirt/connection-driver/libvirt_driver_qemu.so"))
    return found[0].parent if found else None


def configure(folder: Path) -> None:
    """Write libvirt's configuration."""
    for name in _PLACES.values():
        files.make_folder(folder / name)
    files.write_text(folder / "libvirtd.conf", _LIBVIRTD)
    files.write_text(folder / "etc/qemu.conf", _QEMU)
    drivers = find_drivers()
    assert drivers is not None, "require() was called"
    for name in _DRIVERS:
        link = files.make_folder(folder / "drivers") / f"libvirt_driver_{name}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(drivers / link.name)


def service(folder: Path, port: int) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="local_chameleon.hypervisor",
        environ={"LOCAL_CHAMELEON_PORT": str(port)},
        probe="/",
        answers=(200,),
    )


def socket_path(folder: Path) -> Path:
    """Where clients reach libvirtd."""
    return folder / "run/libvirt/libvirt-sock"


def uri(folder: Path) -> str:
    """What clients call it."""
    return f"qemu:///system?socket={socket_path(folder)}"


def make_places(folder: Path) -> None:
    """Make the folders of the host that libvirt's are mounted over, where they are missing; noted before."""
    missing = {place for place in _PLACES if not Path(place).exists()}
    if missing:
        files.write_text(folder / _MADE, json.dumps(sorted(missing | _made(folder))))
    for place in missing:
        Path(place).mkdir(parents=True)


def remove(folder: Path) -> None:
    """Undo :func:`make_places`, once all machines have ended, which the end of the service makes the kernel end.

    Where another program has put something into a folder, that stays.  Raises SageError where a machine goes on.
    """
    for _ in process.poll_until(_ENDED_WITHIN, 0.05):
        if not _runs(folder):
            break
    else:
        raise SageError(f"machines of {folder.parent} do not end", hint="they are stuck in the kernel; see ps")
    for place in map(Path, _made(folder)):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    (folder / _MADE).unlink(missing_ok=True)


def _runs(folder: Path) -> bool:
    """Whether libvirtd or a machine is there yet; all of them name the state folder."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                program = os.path.basename(words[0].decode(errors="replace"))
                ours = any(os.fsencode(folder.parent) + b"/" in word for word in words)
                if ours and program.startswith(("qemu-system-", "libvirtd")):
                    return True
    return False


def _made(folder: Path) -> set[str]:
    path = folder / _MADE
    return set(json.loads(path.read_text())) if path.exists() else set()


# ------------------------------------------------------------------------------------------- the service as a program


def main() -> NoReturn:
    """Run until libvirtd ends, or SIGTERM comes."""
    folder = Path.cwd()
    _clear_sockets(folder)
    words = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    unshared = process.start([*words, sys.executable, "-m", "local_chameleon.hypervisor", "within"])

    def end(number: int, frame: FrameType | None) -> None:
        for first in process.children(unshared.pid):
            os.kill(first, signal.SIGKILL)  # and with it all processes of the namespace
        unshared.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    health.serve(int(os.environ["LOCAL_CHAMELEON_PORT"]), lambda: _answers(socket_path(folder)))
    sys.exit(f"libvirtd ended, with exit status {unshared.wait()}")


def _clear_sockets(folder: Path) -> None:
    """What a libvirtd before this one left in /run tells of processes that are gone."""
    shutil.rmtree(folder / "run")
    (folder / "run/lock").mkdir(parents=True)


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(path))
    except OSError:
        return False
    return True


def within() -> NoReturn:
    """Be the first process of the namespaces: libvirtd's parent, and that of its orphans."""
    folder = Path.cwd()
    for place, name in _PLACES.items():
        process.run(["mount", "--bind", folder / name, place])
    for name, line in _USERS.items():
        known = Path("/etc", name).read_text()
        if not any(one.startswith("libvirt-qemu:") for one in known.splitlines()):
            files.write_text(folder / name, f"{known}{line}\n")
            process.run(["mount", "--bind", folder / name, f"/etc/{name}"])
    libvirtd = process.start(
        ["libvirtd", "--config", folder / "libvirtd.conf", "--pid-file", "/run/libvirtd.pid"],
        env={"LIBVIRT_DRIVER_DIR": str(folder / "drivers")},
    )
    while True:
        pid, status = os.wait()
        if pid == libvirtd.pid:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    within() if sys.argv[1:2] == ["within"] else main()
