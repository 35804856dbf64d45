# SPDX-License-Identifier: Apache-2.0
"""Building for another architecture: QEMU runs its programs, and the hot ones run natively.

The kernel's binfmt_misc hands every program of the other architecture to ``native-launcher``, which runs the native
program of the same path where :data:`PROGRAMS_NATIVE` has it, and ``qemu-user-static`` otherwise.  No file of the
tree is replaced, so what packages bring is what the image holds.  The native programs come from the same release's
archive and lie in the cache; element ``native-programs`` mounts them in the tree while it is built.

Since Linux 6.7 a user namespace has a binfmt_misc of its own, which ends with it: :func:`activate` registers the
launcher there, and the host sees nothing of it.  On older kernels :func:`registered` has a process of its own register
it for the host and take it back, however this one ends.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from groundwork import console, files, process
from groundwork.errors import InputError, SageError
from image_builder import identity, privilege
from image_builder import recipe as recipes
from image_builder.privilege import Way
from image_builder.recipe import Recipe
from image_builder.variant import Arch

ELEMENT = "native-programs"
PLACE = "/.sage-native"  # in the tree, while it is built; elements/native-programs has the same
REGISTER = Path("/proc/sys/fs/binfmt_misc")
PROGRAMS = ("gcc", "mmdebstrap")

_LAUNCHER = Path(__file__).with_name("native-launcher.c")
_FORM = 1  # of what prepare() makes; a new number makes it anew
_DEADLINE = 1800.0
_OURS = "sage-"  # how the names of our handlers begin
_NAME = f"{_OURS}aarch64"  # that of a namespace's own register
_EMULATOR = "qemu-aarch64-static"
_TRIPLET = "x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"
# ELF, 64 bit, little endian, executable or shared object, for AArch64 (as QEMU's scripts/qemu-binfmt-conf.sh has it)
_MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # include/linux/proc_ns.h: PROC_USER_INIT_INO

# The packages that hold the native programs; apt adds what they depend on.
_PACKAGES = """
    apt base-passwd bash bzip2 coreutils cpio dash debianutils diffutils dpkg findutils gpgv grep grub-common gzip
    hostname kmod libc-bin mawk openssh-client openssl perl python3 sed systemd tar udev util-linux xz-utils zstd
    """
# Programs that do the same on every architecture.  Not here: what tells the architecture (uname, arch, lscpu), what
# loads plugins from the tree (sudo, PAM), what reads its own architecture's libraries (ldconfig, ldd, iconv).
PROGRAMS_NATIVE = {
    "usr/bin": """
        [ apt apt-cache apt-config apt-get apt-mark b2sum base32 base64 basename bash bunzip2 bzip2 cat chgrp chmod
        chown cksum cmp comm cp cpio csplit cut dash date dd df diff dir dirname dpkg dpkg-deb dpkg-divert dpkg-query
        dpkg-split dpkg-statoverride dpkg-trigger du echo env expand expr factor false find findmnt flock fmt fold
        getopt gpgv grep grub-editenv grub-mkimage gzip head hostname id install ionice ischroot join kmod link ln
        localedef ls lsblk mawk md5sum mkdir mkfifo mknod mktemp mountpoint mv nice nl nohup nproc numfmt od openssl
        paste perl printenv printf pwd readlink realpath rm rmdir run-parts savelog sed seq setpriv sha1sum sha224sum
        sha256sum sha384sum sha512sum shred shuf sleep sort split sqv ssh-keygen stat stdbuf stty sum sync systemctl
        systemd-escape systemd-hwdb systemd-machine-id-setup systemd-sysusers systemd-tmpfiles tac tail tar tee
        tempfile test timeout touch tr true truncate tsort tty udevadm uniq unlink update-alternatives wc whoami xargs
        xz yes zstd
        """,
    "usr/lib/apt": "apt-helper",
    "usr/lib/apt/methods": "copy file gpgv http https mirror rred sqv store",
    "usr/sbin": "chroot update-passwd",
}
# Interpreters run these scripts natively, and all others under QEMU: modules of the other architecture can't be
# loaded natively.  These need none but the standard library's.
_PERL_SCRIPTS = """
    usr/bin/deb-systemd-helper usr/bin/deb-systemd-invoke usr/bin/debconf-set-selections usr/sbin/addgroup
    usr/sbin/adduser usr/sbin/delgroup usr/sbin/deluser usr/sbin/dpkg-preconfigure usr/sbin/dpkg-reconfigure
    usr/sbin/pam-auth-update usr/sbin/update-rc.d usr/share/debconf/frontend
    """
_PYTHON_SCRIPTS = "usr/bin/py3clean usr/bin/py3compile usr/lib/{python}/py_compile.py -m/compileall -m/py_compile"
# py3compile asks for these for each package.
_PYTHON_LINES = ("-c/import imp; print(imp.get_magic())", "-c/import imp; print(imp.get_tag())")


def namespaces(way: Way) -> list[str | Path]:
    """As :func:`privilege.namespaces`, with a register of its own where the kernel can give one."""
    if way is Way.ROOT and _has_own_register():
        return identity.command([])
    return privilege.namespaces(way)


def machine_arch() -> str:
    """This machine's architecture, as Debian calls it where it is one of ours."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def is_needed(arch: Arch) -> bool:
    """Whether programs of ``arch`` must be emulated here."""
    return arch != machine_arch()


def check(arch: Arch) -> None:
    """Raise InputError for what this machine lacks to build for ``arch``; nothing is needed for its own."""
    if not is_needed(arch):
        return
    if (machine_arch(), arch) != ("amd64", Arch.ARM64):
        raise InputError(
            f"an {arch} image can't be built on this {machine_arch()} machine", hint=f"run this on an {arch} machine"
        )
    process.require(*PROGRAMS, _EMULATOR)
    if "binfmt_misc" not in Path("/proc/filesystems").read_text():
        raise InputError("this kernel has no binfmt_misc", hint="modprobe binfmt_misc")
    if not _has_own_register() and os.geteuid() != 0 and _standing_handler() is None:
        raise InputError(
            f"without root, building for {arch} takes Linux 6.7 or newer (this is {platform.release()}) or a handler "
            "registered by the distribution",
            hint="run this as root",
        )


def prepare(recipe: Recipe, cache: Path, scratch: Path) -> Path:
    """Make the folder of native programs for the recipe's release, or take it from the cache.

    It needs no privilege.  ``scratch`` is a folder on the cache's file system that is gone after the run.
    """
    command = _bootstrap_command(recipe)
    launcher = _LAUNCHER.read_text()
    emulator = Path(str(process.find(_EMULATOR)))
    described = json.dumps(
        [
            _FORM,
            PROGRAMS_NATIVE,
            _PERL_SCRIPTS,
            _PYTHON_SCRIPTS,
            _PYTHON_LINES,
            command,
            launcher,
            files.digest_file(emulator).sha256,
        ]
    )
    place = cache / "native" / files.digest_text(described)
    with files.lock(cache / f"locks/native-{place.name[:16]}.lock", wait=_DEADLINE):
        if not place.is_dir():
            made = files.make_folder(scratch / "native")
            process.run([*command[:-2], str(made / "root"), command[-1]], timeout=_DEADLINE)
            _furnish(made, recipe.arch)
            shutil.copyfile(emulator, made / "qemu")
            (made / "qemu").chmod(0o755)
            _compile(made / "launcher", scratch)
            files.make_folder(place.parent)
            made.rename(place)
        os.utime(place)  # in use: see layers.prune
    return place


def activate(folder: Path) -> None:
    """Hand the other architecture's programs to the launcher in ``folder``; called as root of a build's namespaces.

    In a user namespace of its own, of a kernel that can, the registration is this namespace's alone.  Elsewhere
    :func:`registered` has seen to it, or the distribution.
    """
    if not (in_own_user_namespace() and _has_own_register()):
        return
    process.run(["mount", "-t", "binfmt_misc", "binfmt_misc", REGISTER], timeout=30)
    _register(_NAME, folder / "launcher")


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Keep the launcher in ``folder`` registered for the whole host where the kernel has but one register.

    Another process does that: it takes the registration back when the block ends or this program dies.  A handler
    that the distribution has registered is used as it is, without native programs.
    """
    if _has_own_register():
        yield
        return
    if (handler := _standing_handler()) is not None:
        console.warn(f"{handler} runs all arm64 programs; with Linux 6.7 or newer this would be faster")
        yield
        return
    # In a mount namespace of its own: the host need not have binfmt_misc mounted.
    command: list[str | Path] = ["unshare", "--mount", "--propagation=private", "--"]
    command += [sys.executable, "-m", "image_builder.emulation", folder / "launcher"]
    guardian = process.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, outlive=True)
    try:
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        if guardian.stdout.readline() != b"registered\n":
            raise SageError("can't register arm64 programs with the kernel")
        yield
    finally:
        guardian.communicate(timeout=30)  # closes its input, whereupon it ends


def in_own_user_namespace() -> bool:
    """Whether this process is in another user namespace than the machine's first."""
    return os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE


def _has_own_register(release: str | None = None) -> bool:
    """Whether user namespaces have a binfmt_misc of their own (since Linux 6.7)."""
    found = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return found is not None and (int(found[1]), int(found[2])) >= (6, 7)


def _standing_handler() -> str | None:
    """The name of a handler on this host for AArch64 that works in a chroot too (flag F), if there is one.

    None of ours counts: another build's is gone when that ends.
    """
    try:
        entries = [path for path in REGISTER.iterdir() if path.name not in ("register", "status")]
    except OSError:
        return None
    for entry in entries:
        if entry.name.startswith(_OURS):
            continue
        text = entry.read_text()
        if "7f454c46" in text and "b700" in text and re.search(r"^flags: \w*F", text, re.MULTILINE):
            return entry.name
    return None


def _register(name: str, launcher: Path) -> None:
    # P: argv[0] is passed on; F: the kernel opens the launcher now, so that it runs in every chroot.
    line = b":%s:M::%s:%s:%s:PF" % (name.encode(), _MAGIC, _MASK, os.fsencode(launcher))
    if len(line) > 1900:
        raise InputError(f"the path {launcher} is too long for the kernel", hint="name a shorter --cache-dir")
    (REGISTER / "register").write_bytes(line)


def _stand_guard(launcher: Path) -> None:
    """Register the launcher for the host until standard input ends."""
    process.run(["mount", "-t", "binfmt_misc", "binfmt_misc", REGISTER], timeout=30)
    for left in REGISTER.glob(f"{_OURS}*"):  # a guardian's that was killed too
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            left.write_text("-1")
    name = f"{_OURS}arm64-{os.getpid()}"
    _register(name, launcher)
    try:
        sys.stdout.write("registered\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        (REGISTER / name).write_text("-1")


def _bootstrap_command(recipe: Recipe) -> list[str]:
    """mmdebstrap that unpacks the native packages: its last words are the target, which is to be filled in, and
    sources."""
    archive = recipe.archive
    row = recipes.releases()[recipe.release]
    native = machine_arch()
    stock = row["mirrors"][recipe.arch]
    mirror = row["mirrors"][native] if archive.mirror == stock else archive.mirror
    lines = [f"deb {mirror} {suite.format(release=recipe.release)} {{}}" for suite in row["suites"]]
    if archive.security_mirror:
        lines.append(f"deb {archive.security_mirror} {row['security']['suite'].format(release=recipe.release)} {{}}")
    merge = 'for name in bin lib lib64 sbin; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done'
    return [
        *("mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract", f"--arch={native}"),
        *('--aptopt=APT::Install-Recommends "false"', f"--keyring={archive.keyring}", f"--setup-hook={merge}"),
        f"--include={','.join(_PACKAGES.split())}",
        recipe.release,
        "",
        "\n".join(lines).format(*[" ".join(archive.components)] * len(lines)),
    ]


def _furnish(folder: Path, arch: Arch) -> None:
    """Make of ``folder/root``, an unpacked tree, what the launcher reads; drop what it does not need."""
    root = folder / "root"
    packaged = _patch_dpkg(root, arch)
    perl, python = _version(root, f"usr/lib/{_TRIPLET}/perl/5.*"), _version(root, "usr/lib/python3.*")
    inside = f"{PLACE}/root/usr/lib/{_TRIPLET}"
    options = {
        "usr/bin/perl": [f"-I{inside}/perl-base", f"-I{inside}/perl/{perl}"],
        **{
            f"usr/bin/{name}": [f"-oAPT::Architecture={arch}", f"-oAPT::Architectures={arch}"]
            for name in ("apt", "apt-cache", "apt-config", "apt-get", "apt-mark")
        },
    }
    names = [f"{where}/{name}" for where, words in PROGRAMS_NATIVE.items() for name in words.split()]
    for name in [*names, f"usr/bin/{python}"]:
        program = root / name
        if not program.exists() or (Path(name).name.startswith("dpkg") and name not in packaged):
            continue
        marker = folder / "programs" / name
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("".join(word + "\n" for word in options.get(name, ())))
    scripts = {
        "perl": _PERL_SCRIPTS.split(),
        python: [*_PYTHON_SCRIPTS.format(python=python).split(), *_PYTHON_LINES],
    }
    for interpreter, names in scripts.items():
        for script in names:
            marker = folder / "scripts/usr/bin" / interpreter / script
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    shutil.copyfile((root / "usr/lib" / _TRIPLET / _LOADER).resolve(), folder / "loader")
    (folder / "loader").chmod(0o755)
    for unneeded in ("boot", "dev", "etc", "home", "proc", "run", "sys", "tmp", "usr/share", "var"):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    loaded: list[str | Path] = [folder / "loader", "--library-path", libraries(str(folder))]
    said = process.run([*loaded, root / "usr/bin/dpkg", "--print-architecture"], timeout=30).strip()
    if said != arch and (folder / "programs/usr/bin/dpkg").exists():
        raise SageError(f"the native dpkg says {said} instead of {arch}")


def libraries(folder: str) -> str:
    """The native programs' library path, below the folder of native programs."""
    return ":".join(f"{folder}/root/usr/lib/{where}" for where in (_TRIPLET, f"{_TRIPLET}/systemd", "systemd"))


def _version(root: Path, pattern: str) -> str:
    """The name of the one folder that fits and is no link."""
    (found,) = [path.name for path in root.glob(pattern) if path.is_dir() and not path.is_symlink()]
    return found


def _patch_dpkg(root: Path, arch: Arch) -> set[str]:
    """Have the native dpkg and its kin take ``arch`` for their own; returns those that do.

    It is compiled in, and its name has as many letters.
    """
    done = set()
    for program in (root / "usr/bin").glob("dpkg*"):
        content = program.read_bytes()
        if not content.startswith(b"\x7fELF"):
            continue
        if content.count(b"\0amd64\0") == 1:
            program.write_bytes(content.replace(b"\0amd64\0", b"\0%s\0" % arch.encode()))
            done.add(f"usr/bin/{program.name}")
        elif b"\0amd64\0" not in content:
            done.add(f"usr/bin/{program.name}")
    return done


def _compile(target: Path, scratch: Path) -> None:
    """Compile the launcher, without dependencies: it runs in every chroot."""
    given: Sequence[str] = [f'-DNATIVE="{PLACE}"', f'-DLIBRARIES="{libraries(PLACE)}"']
    process.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-static", "-s", *given, "-o", target, _LAUNCHER], cwd=scratch, timeout=120
    )


if __name__ == "__main__":
    _stand_guard(Path(sys.argv[1]))
