# SPDX-License-Identifier: Apache-2.0
"""The virtual environments the services run in: apart from this program's own, for their versions are older.

One is keyed by the digest of the profile's requirements and the Python version, and counts only once the file
``complete`` stands in it: what a killed installation left is removed and made anew.
"""

import sys
import sysconfig
from pathlib import Path

from groundwork import console, files, process
from groundwork.errors import InputError, SageError

_INSTALL_TIMEOUT = 1800.0  # seconds; 20 to 40 s with a warm cache on two cores, minutes on a slow line
_LOCK_WAIT = 1900.0


def digest(requirements: str) -> str:
    """The environment's key: other versions or another Python make another environment."""
    return files.digest_text(requirements, str(sys.implementation.cache_tag), sysconfig.get_platform())[:16]


def locate(env_dir: Path, requirements: Path) -> Path:
    """Where the environment of these requirements is, or will be."""
    return env_dir / digest(requirements.read_text(encoding="utf-8"))


def usable(environment: Path) -> bool:
    """Whether it was installed to the end and its Python is still on this machine."""
    return (environment / "complete").exists() and (environment / "bin/python").exists()


def ensure(env_dir: Path, requirements: Path) -> Path:
    """Give the environment, installing it first where need be.

    Raises InputError when the compiler or Python's headers, which uwsgi is built with, are missing, and SageError
    when the installation fails; its log stays beside the environment.
    """
    environment = locate(env_dir, requirements)
    if usable(environment):
        return environment
    require_compiler(Path(sysconfig.get_paths()["include"]))
    with (
        files.lock(
            env_dir / "lock",
            wait=_LOCK_WAIT,
            on_wait=lambda owner: console.say(f"waiting for pid {owner}, which installs the environment"),
        ),
        console.stage("installing OpenStack into an environment of its own (once)") as stage,
    ):
        if not usable(environment):
            files.remove_tree(environment)
            _install(environment, requirements, env_dir / f"{environment.name}.log")
            files.write_text(environment / "complete", "")
        stage.note = str(environment)
    return environment


def require_compiler(include: Path) -> None:
    """Raise InputError unless a C compiler and the headers of this Python are there."""
    missing = [] if any(process.find(name) for name in ("gcc", "cc", "clang")) else ["a C compiler"]
    if not (include / "Python.h").exists():
        missing.append(f"the headers of Python ({include}/Python.h)")
    if missing:
        raise InputError(
            f"missing {files.join_names(missing)}, which uwsgi is built with",
            hint=f"install with: apt-get install gcc libc6-dev python{sys.version_info[0]}.{sys.version_info[1]}-dev",
        )


def _install(environment: Path, requirements: Path, log_path: Path) -> None:
    uv = _find_uv()
    python = environment / "bin/python"
    # Without compiled bytecode every start of a service would cost twice as much.
    if uv:
        commands: list[list[str | Path]] = [
            [uv, "venv", "--python", sys.executable, environment],
            [uv, "pip", "install", "--python", python, "--compile-bytecode", "-r", requirements],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", environment],
            [python, "-m", "pip", "install", "--disable-pip-version-check", "--compile", "-r", requirements],
        ]
    files.make_folder(log_path.parent)
    with log_path.open("wb") as log:
        for command in commands:
            try:
                # uv trusts its own list of authorities unless told to use the machine's, as all else does
                process.run(command, log=log, timeout=_INSTALL_TIMEOUT, env={"UV_SYSTEM_CERTS": "1"})
            except process.ProcessError as error:
                console.say(files.tail(log_path, 20))
                raise SageError(
                    f"the services' environment could not be installed: {error}",
                    hint=f"the whole log is {log_path}; the package index must be reachable"
                    + ("" if uv else ", and Debian's Python needs the package python3-venv"),
                ) from None
    log_path.unlink()


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else process.find("uv")
