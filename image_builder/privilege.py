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
    module, function = entry.split(":")
    kept = [
        name
        for name in ("OS_CLIENT_CONFIG_FILE", "SAGE_DEBUG", "http_proxy", "https_proxy", "no_proxy")
        if name in os.environ
    ]
    if "OS_CLIENT_CONFIG_FILE" not in kept:
        # root's home is another one: show the user's clouds.yaml to it
        clouds = next((path for path in _clouds_files() if path.exists()), None)
        if clouds:
            os.environ["OS_CLIENT_CONFIG_FILE"] = str(clouds)
            kept.append("OS_CLIENT_CONFIG_FILE")
    console.say("Building a root tree needs root: running the whole of it again through sudo")
    sys.stdout.flush()
    start = f"import sys; sys.argv[0] = {function.replace('_', '-')!r}; from {module} import {function}; {function}()"
    search = [str(Path(path).absolute()) for path in sys.path if path]  # also where the package is not installed
    command = ["sudo", f"--preserve-env={','.join(kept)}", "--"]
    if "PYTHONPATH" in os.environ:
        command += ["env", f"PYTHONPATH={os.pathsep.join(search)}"]
    os.execvp("sudo", [*command, sys.executable, "-c", start, *flags])  # noqa: S606 - nothing of it is a shell's


def namespaced(command: Sequence[str | Path]) -> list[str | Path]:
    """The command in mount and process namespaces of its own: what it mounts and starts ends with it."""
    flags = ["--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return ["unshare", *flags, "--", *command]


def _clouds_files() -> list[Path]:
    """Where openstacksdk looks for clouds.yaml."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path.cwd() / "clouds.yaml", home / "openstack/clouds.yaml", Path("/etc/openstack/clouds.yaml")]
