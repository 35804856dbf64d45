# SPDX-License-Identifier: Apache-2.0
"""Runs a disk under QEMU, the disk itself untouched: firmware, config drive, console, ssh, shutdown.

The guest gets its name, network and ssh key as on OpenStack, by cloud-init from a config drive, and reaches nothing
but this host.
"""

import io
import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import files, process
from groundwork.errors import InputError, SageError
from image_builder import config_drive, hardware
from image_builder.config_drive import Instance, quoted
from image_builder.hardware import Firmware, Guise
from image_builder.variant import Arch

_MIB = 1 << 20
_MEMORY_MIB = 2048
_GROW_BY = 2048 * _MIB  # the machine's disk is larger than the image, so that growing can be seen
_REFUSED_FOR = 30.0  # seconds
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_RESTRICTED_NETWORK = "user,restrict=on"
# Nothing listens there in the image; a check does, to see what the firewall lets in.
CLOSED_PORT = 8080


@dataclass(frozen=True)
class Site:
    """What a machine finds around it.

    ``instance`` is what its config drive holds; None: there is none.  ``network`` are QEMU's words for a network
    back end.  ``console`` is a Unix socket to make, at whose other end the machine's serial console can be read
    and typed at; its path must be short (107 bytes, says unix(7)).
    """

    guise: Guise
    instance: Instance | None
    network: str = _RESTRICTED_NETWORK
    console: Path | None = None


def usual_site(firmware: Firmware, key: "LoginKey") -> Site:
    """The site that is played around a machine with this firmware."""
    if hardware.guise(firmware) is Guise.BARE_METAL:
        return Site(Guise.BARE_METAL, config_drive.of_bare_metal(key.public, hardware.MAC))
    return Site(Guise.VIRTUAL, config_drive.of_virtual_machine(key.public, hardware.MAC))


@dataclass(frozen=True)
class _Model:
    program: str
    machine: str
    # Without KVM: the least processor that the releases run on.  Emulating a newer one's vector instructions takes
    # a seventh more time, and what starts here starts everywhere.
    processor: str
    package: str
    # UEFI code and variables, as the distributions' packages name them, the newest first
    uefi: tuple[tuple[str, str], ...]


_MODELS = {
    Arch.AMD64: _Model(
        "qemu-system-x86_64",
        "q35",
        "qemu64",
        "ovmf",
        (
            ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ),
    ),
    Arch.ARM64: _Model(
        "qemu-system-aarch64",
        "virt",
        "cortex-a57",
        "qemu-efi-aarch64",
        (("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),),
    ),
}


class MachineError(SageError):
    """The machine did not do what was waited for; ``console`` has the end of its serial console."""

    def __init__(self, message: str, console_tail: str) -> None:
        super().__init__(message)
        self.console = console_tail


class EmulatorFailed(SageError):
    """QEMU itself came to a bad end, which tells nothing of the image."""


@dataclass(frozen=True)
class LoginKey:
    """A key pair for one run, in OpenSSH's forms.  The private half is never written to a file."""

    private: str
    public: str


def new_key() -> LoginKey:
    """Make an Ed25519 key pair."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return LoginKey(private.decode(), public.decode() + " sage-verify")


def firmwares(arch: Arch) -> tuple[Firmware, ...]:
    """The firmwares that machines of this architecture have."""
    return (Firmware.BIOS, Firmware.UEFI) if arch is Arch.AMD64 else (Firmware.UEFI,)


def programs(arch: Arch) -> tuple[str, ...]:
    """The programs that running a machine of this architecture takes."""
    return (_MODELS[arch].program, *config_drive.PROGRAMS)


def uefi_files(arch: Arch) -> tuple[Path, Path]:
    """The UEFI firmware's code and its empty variables.  InputError when none is installed."""
    model = _MODELS[arch]
    for code, variables in model.uefi:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    raise InputError("no UEFI firmware for QEMU is installed", hint=f"install with: apt-get install {model.package}")


def kvm_works() -> bool:
    """Whether KVM runs a guest here.

    On some hosts ``/dev/kvm`` opens and a guest then hangs without an error: so SeaBIOS is started and must say
    so within three seconds.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    # fmt: off
    child = process.start(
        ["qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64", "-display", "none",
         "-nodefaults", "-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    # fmt: on
    try:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        said = b""
        for _ in process.poll_until(3.0, 0.05):
            said += child.stdout.read() or b""
            if b"SeaBIOS" in said:
                return True
            if child.poll() is not None:
                return False
        return False
    finally:
        process.stop(child, patience=1.0)


class Machine:
    """A running virtual machine; :func:`running` makes it."""

    def __init__(
        self,
        firmware: Firmware,
        site: Site,
        child: "subprocess.Popen[bytes]",
        ports: dict[int, int],
        key: LoginKey,
        log: Path,
        complaints: Path,
    ) -> None:
        self.firmware = firmware
        self.site = site
        self.log = log
        self.begin = time.monotonic()
        self._child = child
        self._ports = ports  # the guest's -> this host's
        self._key = key
        self._complaints = complaints  # QEMU's own

    def console_tail(self, lines: int = 30) -> str:
        """The end of what the machine said on its serial console, without colours and blank lines."""
        said = (_TERMINAL_CODES.sub("", line).rstrip() for line in files.tail(self.log, 4 * lines).splitlines())
        return "\n".join([line for line in said if line][-lines:])

    def login(self, user: str, deadline: float) -> Any:
        """Wait until ``user`` can log in by the key and return a fabric.Connection.

        ``deadline`` in seconds from power-on.  Raises MachineError when it is over or the machine ended, and
        EmulatorFailed.
        """
        import paramiko

        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs tracebacks for a guest not yet up
        reason = "nothing answered on port 22"
        refused_since: float | None = None
        while (left := deadline - (time.monotonic() - self.begin)) > 0:
            self._still_running()
            try:
                return self.connect(user, min(left, 60.0))
            except paramiko.AuthenticationException:
                # cloud-init sets the key before sshd starts; so this is not for want of time
                refused_since = refused_since or time.monotonic()
                if time.monotonic() - refused_since > _REFUSED_FOR:
                    raise MachineError(f"ssh refuses {user} with the config drive's key", self.console_tail()) from None
            except Exception as error:  # paramiko raises a dozen kinds while the guest is coming up
                reason = f"{type(error).__name__}: {error}"
            time.sleep(0.5)
        raise MachineError(f"no login as {user} within {deadline:g} s of power-on ({reason})", self.console_tail())

    def offered_logins(self, user: str, timeout: float) -> list[str]:
        """The ways of authentication that the machine's ssh server offers to a user who shows nothing."""
        return offered_logins(("127.0.0.1", self._ports[22]), user, timeout)

    def takes_key_of(self, user: str, timeout: float) -> bool:
        """Whether ``user`` may log in with the key."""
        import paramiko

        try:
            self.connect(user, timeout).close()
        except paramiko.AuthenticationException:
            return False
        return True

    def hears(self, port: int, timeout: float) -> bytes:
        """What the guest says first on one of its forwarded ports; nothing where it does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self._ports[port]), timeout=timeout) as stream:
                return stream.recv(64)
        except OSError:
            return b""

    def wait_off(self, deadline: float) -> bool:
        """Wait, ``deadline`` seconds, for the machine to power itself off."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(deadline)
        return self._child.poll() is not None

    def connect(self, user: str, timeout: float) -> Any:
        """A fabric.Connection of a user who may log in already; raises what paramiko and sockets raise."""
        import fabric
        import paramiko

        with socket.create_connection(("127.0.0.1", self._ports[22]), timeout=2.0) as probe:
            # QEMU's side of the connection is always there; only the guest's greeting shows the guest's.
            probe.settimeout(min(timeout, 20.0))
            if not probe.recv(4):
                raise ConnectionError("the guest closed the connection")
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(self._key.private))
        options = {"pkey": key, "look_for_keys": False, "allow_agent": False}
        connection = fabric.Connection(
            "127.0.0.1",
            user=user,
            port=self._ports[22],
            connect_timeout=int(timeout),
            config=fabric.Config(lazy=True),
            connect_kwargs={**options, "banner_timeout": timeout, "auth_timeout": timeout},
        )
        connection.open()
        return connection

    def check_emulator(self) -> None:
        """Raise EmulatorFailed where QEMU has crashed or was killed.  A guest that goes off ends it with status 0."""
        if self._child.poll():
            said = files.tail(self._complaints, 3)
            raise EmulatorFailed(
                f"QEMU ended with exit status {self._child.returncode} on {self.firmware}: {said}",
                hint="is there memory and disk space enough? the kernel's log tells what it killed",
            )

    def _still_running(self) -> None:
        self.check_emulator()
        if self._child.poll() is not None:
            raise MachineError("the machine switched itself off", self.console_tail())


def offered_logins(place: tuple[str, int], user: str, timeout: float) -> list[str]:
    """The ways of authentication that the ssh server at an address and port offers to a user who shows nothing."""
    import paramiko

    with socket.create_connection(place, timeout=timeout) as stream:
        transport = paramiko.Transport(stream)
        transport.banner_timeout = transport.auth_timeout = timeout
        try:
            transport.start_client(timeout=timeout)
            transport.auth_none(user)
        except paramiko.BadAuthenticationType as error:
            return list(error.allowed_types)
        finally:
            transport.close()
    return ["none"]


@contextmanager
def running(
    image: Path,
    arch: Arch,
    firmware: Firmware,
    key: LoginKey,
    log: Path,
    scratch: Path,
    *,
    accel: str,
    cpus: int,
    site: Site | None = None,
) -> Iterator[Machine]:
    """Power on a machine with a copy-on-write layer over ``image``; when the block ends the machine is gone.

    ``log`` gets its serial console.  ``accel`` is ``kvm`` or ``tcg``.  ``site`` is the usual one, unless given.
    """
    site = site or usual_site(firmware, key)
    model = _MODELS[arch]
    own = files.make_folder(scratch / firmware)
    layer = own / "disk.qcow2"
    facts = json.loads(process.run(["qemu-img", "info", "--output=json", image], timeout=60))
    size = (int(facts["virtual-size"]) + _GROW_BY) // _MIB * _MIB
    backing = ["-b", image.absolute(), "-F", facts["format"]]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, layer, str(size)], timeout=60)
    drives = ["-drive", f"id=disk,if=none,format=qcow2,file={quoted(layer)},cache=unsafe,discard=unmap"]
    if site.instance is not None and site.guise is Guise.BARE_METAL:
        config_drive.write_last_partition(site.instance, layer, size, own)
    elif site.instance is not None:
        config_drive.write_disk(site.instance, own / "config-drive")
        drives += ["-drive", f"if=virtio,format=raw,readonly=on,file={quoted(own / 'config-drive')}"]
    pflash: list[str] = []
    if firmware is Firmware.UEFI:
        code, variables = uefi_files(arch)
        (own / "variables.fd").write_bytes(variables.read_bytes())
        for path, readonly in ((code, "on"), (own / "variables.fd", "off")):
            pflash += ["-drive", f"if=pflash,format=raw,readonly={readonly},file={quoted(path)}"]
    files.make_folder(log.parent)
    log.unlink(missing_ok=True)
    log.touch()
    files.give_to_owner_of(log.parent, log)
    complaints = own / "stderr"
    ports = {port: _free_port() for port in (22, CLOSED_PORT)}
    forwarded = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in ports.items())
    kinds = hardware.devices(site.guise, arch, own)
    accelerator = "kvm" if accel == "kvm" else "tcg,thread=multi,tb-size=512"
    serial = (
        "null,id=serial" if site.console is None else f"socket,id=serial,path={quoted(site.console)},server=on,wait=off"
    )
    # fmt: off
    command: list[str | Path] = [
        model.program, "-name", f"sage-verify-{firmware}", "-machine", model.machine, "-accel", accelerator,
        "-cpu", ("host" if accel == "kvm" else model.processor) + kinds.processor,
        "-smp", str(cpus), "-m", str(_MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot", *pflash,
        *kinds.disk, *drives, "-netdev", f"{site.network},id=net0{forwarded}", *kinds.network, *kinds.others,
        "-chardev", f"{serial},logfile={quoted(log)}", "-serial", "chardev:serial",
    ]
    # fmt: on
    with complaints.open("wb") as stderr:
        child = process.start(command, stdout=stderr, stderr=stderr)
    try:
        time.sleep(0.2)
        if child.poll() is not None:
            raise SageError(f"{model.program} ended at once: {files.tail(complaints, 5)}")
        yield Machine(firmware, site, child, ports, key, log, complaints)
    finally:
        process.stop(child, patience=3.0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
