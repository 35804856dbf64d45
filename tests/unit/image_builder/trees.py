# SPDX-License-Identifier: Apache-2.0
"""Small root trees and builds of a test's own."""

import os
from pathlib import Path

from image_builder.inventory import Entry, Kind
from image_builder.manifest import Package


def put(root: Path, path: str, content: str | bytes = "", mode: int = 0o644) -> Path:
    """A file in the tree."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    place.chmod(mode)
    return place


def small_tree(root: Path) -> Path:
    """A tree with merged /usr, two packages, a diversion, bytecode, hard links and Python packages."""
    put(root, "usr/bin/bash", b"x" * 5000, 0o755)
    put(root, "usr/bin/perl", "perl", 0o755)
    (root / "usr/bin/perl5.36.0").hardlink_to(root / "usr/bin/perl")
    put(root, "usr/bin/sh.distrib", "another shell", 0o755)
    (root / "usr/bin/sh").symlink_to("bash")
    (root / "bin").symlink_to("usr/bin")
    put(root, "usr/lib/python3/dist-packages/jq.py")
    put(root, "usr/lib/python3/dist-packages/__pycache__/jq.cpython-311.pyc", "code")
    put(root, "usr/lib/python3/dist-packages/jq-1.2.dist-info/METADATA", "Name: jq\nVersion: 1.2\n")
    put(root, "usr/local/lib/python3.11/dist-packages/waggle-0.5.dist-info/METADATA", "Name: waggle\nVersion: 0.5\n\nx")
    put(root, "opt/old/old.egg-info/PKG-INFO", "Name: old\nVersion: 3\n")
    put(root, "opt/virtual-waggle/groundwork/__init__.py")
    put(root, "etc/hostname", "sage\n")
    os.mkfifo(root / "etc/pipe")
    info = "var/lib/dpkg/info"
    put(root, f"{info}/bash.list", "/.\n/bin\n/bin/bash\n/bin/sh\n")
    put(root, f"{info}/dash:amd64.list", "/.\n/bin\n/bin/sh\n")
    python = "/usr/lib/python3/dist-packages"
    put(root, f"{info}/python3-jq.list", f"{python}/jq.py\n{python}/jq-1.2.dist-info/METADATA\n")
    put(root, f"{info}/python3-jq.md5sums", "")
    put(root, "var/lib/dpkg/diversions", "/bin/sh\n/bin/sh.distrib\nbash\n")
    return root


def file(path: str, size: int = 0, digest: str = "d", package: str = "", mode: int = 0o644, uid: int = 0) -> Entry:
    """A file's row."""
    return Entry(path, Kind.FILE, mode, uid, 0, size, "", digest, package)


def package(name: str, version: str = "1", source: str = "", source_version: str = "") -> Package:
    return Package(name, version, "amd64", source, source_version)
