# SPDX-License-Identifier: Apache-2.0
"""Where a node or a Beehive keeps what it is: whose folder it is, and the secrets in it."""

import ctypes
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2  # linux/prctl.h
SERVICE_ID = 990  # user and group of the services where root sets them up; `waggle` in the container image


def chosen(given: str | None, variable: str, name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The state folder: the one given, else the variable's, else ``/var/lib/<name>`` where this user can write it.

    Else ``$XDG_STATE_HOME/<name>``.
    """
    named = given or environment.get(variable)
    if named:
        return Path(named).expanduser().absolute()
    system = Path("/var/lib", name)
    if os.access(system if system.exists() else system.parent, os.W_OK):
        return system
    home = environment.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home, name)


def prepare(folder: Path) -> None:
    """Make a state folder; root's is given to the services' user, so that no service is root."""
    files.make_folder(folder)
    if os.geteuid() == 0 and folder.stat().st_uid == 0:
        os.chown(folder, SERVICE_ID, SERVICE_ID)


def owner(folder: Path) -> tuple[int, int]:
    """User and group that the services of this state folder run as."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        raise InputError(f"there is no state folder {folder}") from None
    return found.st_uid, found.st_gid


def become_owner(folder: Path) -> None:
    """As root: be the owner of this folder from here on, for good.  Raises InputError where that is root too."""
    if os.geteuid() != 0:
        return
    user, group = owner(folder)
    if user == 0:
        raise InputError(f"{folder} belongs to root", hint=f"chown -R {SERVICE_ID}:{SERVICE_ID} {folder}")
    "a".encode("idna")  # loaded at first use, perhaps from a folder that only root can read; names of hosts take it
    libc = ctypes.CDLL(None, use_errno=True)
    at_parents_end = ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(at_parents_end), 0, 0, 0)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    # Linux forgets it with the change of user (prctl(2)), and we would outlive who started us (groundwork.process)
    libc.prctl(_PR_SET_PDEATHSIG, at_parents_end.value, 0, 0, 0)


def private_folder(folder: Path) -> bool:
    """Make a folder that its owner alone can enter, or make it so again.  Whether anything changed."""
    changed = not folder.is_dir()
    files.make_folder(folder)
    if folder.stat().st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
        changed = True
    return changed


def keep_secret(path: Path, text: str) -> bool:
    """Write a file that its owner alone can read, unless it holds that already.  Whether anything changed."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return guard(path)
    files.write_text(path, text, mode=0o600)
    return True


def guard(path: Path) -> bool:
    """Make a file readable by its owner alone.  Whether anything changed."""
    if path.stat().st_mode & 0o777 == 0o600:
        return False
    path.chmod(0o600)
    return True


def password(path: Path) -> bool:
    """Have a random password in this file, 160 bits in URL-safe letters.  Whether anything changed."""
    if path.is_file() and path.stat().st_size:
        return guard(path)
    return keep_secret(path, secrets.token_urlsafe(20))
