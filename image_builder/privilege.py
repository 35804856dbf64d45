# SPDX-License-Identifier: Apache-2.0
"""The one place that knows how the root tree comes by its privileges.

Building a root tree and reading it with its owners takes a root: that of a user namespace, where an ordinary user may
have one, or the machine's; the whole program then runs as root, never half of it.  Either way what is started for
the build lives in mount and process namespaces of its own, so that no mount and no process can be left on the host,
however the build ends.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from groundwork import console, files, process
from groundwork.compat import StrEnum
from groundwork.errors import InputError
from groundwork.process import ProcessError


class Way(StrEnum):
    """How a build comes by what it may do."""

    ROOT = "as root"
    USER = "in a user namespace"


def is_root() -> bool:
    return os.geteuid() == 0


def find_way() -> Way | None:
    """The way that is open to this process; None where it takes root, which this is not.

    :func:`why_not` then has the reason.
    """
    if is_root():
        return Way.ROOT
    return Way.USER if why_not() is None else None


@cache
def why_not() -> str | None:
    """Why this user can't have a user namespace to build in; None where he can.  It is tried out."""
    if process.find("newuidmap") is None:
        return "the program newuidmap is missing (apt-get install uidmap)"
    name = getpass.getuser()
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text().splitlines() if path.exists() else []
        if not any(line.split(":")[0] in (name, str(os.getuid())) for line in lines):
            ranges = "--add-subuids 100000-165535 --add-subgids 100000-165535"
            return f"{path} has no range for {name} (usermod {ranges} {name})"
    try:
        # What a build does there: mount, and own files by other numbers.
        process.run([*namespaces(Way.USER), "mount", "-t", "tmpfs", "tmpfs", "/mnt"], timeout=30)
    except ProcessError as error:
        return f"user namespaces are not allowed here ({error})"
    return None


def rerun_as_root(entry: str, flags: Sequence[str]) -> NoReturn:
    """Replace this program by itself under sudo.

    ``entry`` is ``module:function``; ``flags`` give every setting, for sudo changes environment and home.
    """
    if process.find("sudo") is None:
        raise InputError(
            "building a root tree needs root, and there is no sudo here",
            hint="run this as root, or: apt-get install sudo",
        )
    if "SUDO_UID" in os.environ:
        raise InputError("sudo did not make this root", hint="look at runas_default in sudoers, or run this as root")
    if not sys.stdin.isatty():
        try:
            process.run(["sudo", "-n", "true"], timeout=30)
        except ProcessError:
            raise InputError(
                "building a root tree needs root; sudo asks for a password, and there is no terminal",
                hint="run this as root, or in a terminal",
            ) from None
    module, function = entry.split(":")
    _name_openstack_files()
    kept = sorted(name for name in os.environ if name.startswith("OS_") or name in _KEPT)
    console.say(f"Building needs root here, for {why_not()}: running the whole of it again through sudo")
    sys.stdout.flush()
    # Root's Python is to import what this one would, and nothing from the folder that the user happens to be in.
    search = [str(Path(path).absolute()) for path in sys.path if path and Path(path) != Path.cwd()]
    start = (
        f"import sys; sys.path[:] = {search!r}; sys.argv[0] = {function.replace('_', '-')!r}; "
        f"from {module} import {function}; {function}()"
    )
    preserved = [f"--preserve-env={','.join(kept)}"] if kept else []
    words = ["sudo", "-u", "root", *preserved, "--", sys.executable, "-c", start, *flags]
    os.execvp("sudo", words)  # noqa: S606 - nothing of it is a shell's


def namespaces(way: Way) -> list[str | Path]:
    """The words before a command that give it namespaces of its own: what it mounts and starts ends with it."""
    user = ["--user", "--map-root-user", "--map-auto"] if way is Way.USER else []
    flags = ["--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return ["unshare", *user, *flags, "--"]


def remove_tree(path: Path) -> None:
    """Remove a folder with things in it that belong to the root of a build's namespace and its users."""
    if not path.exists():
        return
    if is_root():
        files.remove_tree(path)
    else:
        doomed = files.removal_name(path)
        path.rename(doomed)
        process.run([*namespaces(Way.USER), "rm", "-rf", "--", doomed], timeout=600)


# Beside OS_...: what decides how the network is reached, and how this program talks.
_KEPT = {
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("SAGE_DEBUG", "NO_COLOR", "TERM", "SSH_AUTH_SOCK", "GITHUB_STEP_SUMMARY"),
}


def _name_openstack_files() -> None:
    """Root's home is another one: name the user's clouds.yaml and secure.yaml where openstacksdk would find them."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = [Path.cwd(), home / "openstack", Path("/etc/openstack")]
    for variable, stem in (("OS_CLIENT_CONFIG_FILE", "clouds"), ("OS_CLIENT_SECURE_FILE", "secure")):
        candidates = [folder / f"{stem}.{ending}" for folder in folders for ending in ("yaml", "yml", "json")]
        found = next((path for path in candidates if path.exists()), None)
        if found:
            os.environ.setdefault(variable, str(found))
