# SPDX-License-Identifier: Apache-2.0
"""The one place that knows how the root tree comes by its privileges.

Building a root tree and reading it with its owners needs root; the whole program then runs as root, never half of
it.  What it starts for the build lives in mount and process namespaces of its own, so that no mount and no
process can be left on the host, however the build ends.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from groundwork import console, process
from groundwork.errors import InputError
from groundwork.process import ProcessError


def is_root() -> bool:
    return os.geteuid() == 0


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
    console.say("Building a root tree needs root: running the whole of it again through sudo")
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


def namespaced(command: Sequence[str | Path]) -> list[str | Path]:
    """The command in mount and process namespaces of its own: what it mounts and starts ends with it."""
    flags = ["--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return ["unshare", *flags, "--", *command]


# Beside OS_...: what decides how the network is reached, and how this program talks.
_KEPT = {
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("SAGE_DEBUG", "NO_COLOR", "TERM"),
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
