# SPDX-License-Identifier: Apache-2.0
"""The copy of Chameleon's vendor data holds what Chameleon promises and nothing else; the element's script makes it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from image_builder import config_drive
from image_builder.cli import project_folder

SCRIPT = project_folder("elements") / "vendordata/vendordata-files/read-vendordata"
_PROMISED = config_drive.of_bare_metal("ssh-ed25519 AAAA verify", "52:54:00:00:00:01").vendor_data2 or {}


def read(told: Any, folder: Path) -> tuple[str | None, str | None]:
    """The copy, and the login message, where the metadata service tells that; None: there is none."""
    for name in ("programs", "cache", "run"):
        (folder / name).mkdir()
    (folder / "told").write_text(told if isinstance(told, str) else json.dumps(told))
    for name, line in (
        ("blkid", "exit 2"),  # no config drive
        ("curl", f'while [ "$1" != --output ]; do shift; done; cp {folder}/told "$2"'),
    ):
        (folder / "programs" / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / "programs" / name).chmod(0o755)
    script = f"mount --bind {folder}/cache /var/cache && mount --bind {folder}/run /run && mkdir /run/own && {SCRIPT}"
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        env={"PATH": f"{folder}/programs:{os.environ['PATH']}", "RUNTIME_DIRECTORY": "/run/own"},
        check=True,
        timeout=60,
    )
    kept, message = folder / "cache/vendordata2.json", folder / "run/motd.d/60-chameleon"
    assert [path for path in (folder / "cache").iterdir() if path != kept] == []
    return tuple(path.read_text() if path.exists() else None for path in (kept, message))  # type: ignore[return-value]


def test_what_chameleon_promises_is_kept_and_shown_at_login(tmp_path: Path) -> None:
    kept, message = read(_PROMISED, tmp_path)
    assert json.loads(kept or "") == _PROMISED
    assert message is not None
    assert f"node {_PROMISED['chameleon']['node']}, at CHI@UC" in message


def test_secrets_are_not_kept_wherever_they_lie(tmp_path: Path) -> None:
    inside = {
        **_PROMISED["chameleon"],
        "application_credential_secret": "s3cret",
        "access": {"token": "s3cret"},
        "notes": "OS_PASSWORD=s3cret",
        "project_id": {"id": "p", "key": "s3cret"},
    }
    kept, _ = read({"chameleon": inside, "openrc": "s3cret", "other": {"token": "s3cret"}}, tmp_path)
    assert "s3cret" not in str(kept)
    promised = {key: value for key, value in _PROMISED["chameleon"].items() if key != "project_id"}
    assert json.loads(kept or "") == {"chameleon": promised}


def test_what_is_not_chameleon_s_leaves_no_copy(tmp_path: Path) -> None:
    for number, told in enumerate(({"other": 1}, {"chameleon": "CHI@UC"}, {"chameleon": None}, [], "no JSON")):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert read(told, folder) == (None, None)
