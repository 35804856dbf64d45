# SPDX-License-Identifier: Apache-2.0
"""Which packages the containers take, and their files: the distribution's own apt says it, and downloads them.

Run in the root tree while an image is built (``python3 -m virtual_waggle.containers.resolve OUTPUT``), where apt
knows the archive and its keys.  apt believes it installs into an empty system; dpkg is never run.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from groundwork import files, process
from groundwork.errors import SageError
from groundwork.process import ProcessError
from virtual_waggle.containers import definition

_DEADLINE = 1800.0  # seconds; under emulation apt is slow


def main(words: Sequence[str]) -> int:
    """Write the paths of the package files, in a folder of apt's, as a JSON list."""
    wanted = definition.load()
    packages = sorted({package for names in wanted.layers().values() for package in names})
    with tempfile.TemporaryDirectory() as scratch:
        found = debs(packages, wanted.absent, Path(scratch))
    files.write_text(Path(words[0]), json.dumps(found, indent=2) + "\n")
    return 0


def debs(packages: Sequence[str], absent: Sequence[str], scratch: Path) -> list[str]:
    """The files of these packages and of all that they need, downloaded and checked by apt, sorted."""
    status, listed = scratch / "status", scratch / "debs"
    status.write_text("".join(map(_stand_in, absent)))
    listed.unlink(missing_ok=True)
    options = {
        "Debug::NoLocking": "1",
        "Debug::pkgDPkgPm": "1",  # dpkg is not run, but the hook below is
        "Dir::Log": "/dev/null",
        "Dir::State::status": str(status),
        "DPkg::Pre-Install-Pkgs::": f"cat > {listed}",
    }
    command = ["apt-get", "-qq", "--yes", "--no-install-recommends"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    try:
        process.run([*command, "install", *packages], timeout=_DEADLINE)
    except ProcessError as error:
        raise SageError(
            f"apt can't give the containers' packages: {error}", hint="the packages are named in stacks/images.yaml"
        ) from None
    return sorted(listed.read_text().split())


def _stand_in(package: str) -> str:
    return (
        f"Package: {package}\nStatus: install ok installed\nVersion: 999:0\nArchitecture: all\nMulti-Arch: foreign\n"
        "Maintainer: nobody\nDescription: left out\n\n"
    )


if __name__ == "__main__":
    from groundwork.program import run_program

    run_program(lambda: main(sys.argv[1:]))
