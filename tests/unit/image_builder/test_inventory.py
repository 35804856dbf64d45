# SPDX-License-Identifier: Apache-2.0
"""An inventory tells what lies in a tree: each file once, always in the same bytes."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from groundwork.errors import InputError
from image_builder import inventory
from image_builder.inventory import Entry, Kind
from tests.unit.image_builder.trees import put, small_tree


def taken(root: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry in inventory.take(root, {})}


def test_every_file_is_told_with_what_it_is(tmp_path: Path) -> None:
    found = taken(small_tree(tmp_path))
    assert list(found) == sorted(found)
    own = os.getuid(), os.getgid()
    digest = hashlib.sha256(b"x" * 5000).hexdigest()
    assert found["usr/bin/bash"] == Entry("usr/bin/bash", "file", 0o755, *own, 5000, "", digest, "")
    assert found["bin"].kind == Kind.SYMLINK
    assert found["bin"].target == "usr/bin"
    assert found["usr/bin"].kind == Kind.FOLDER
    assert found["usr/bin"].size == 0, "a folder's size differs from file system to file system"
    assert found["etc/pipe"].kind == Kind.PIPE
    assert "bin/bash" not in found, "links are not followed"


def test_a_file_of_two_names_counts_once(tmp_path: Path) -> None:
    found = taken(small_tree(tmp_path))
    assert (found["usr/bin/perl"].kind, found["usr/bin/perl"].size) == (Kind.FILE, 4)
    second = found["usr/bin/perl5.36.0"]
    assert (second.kind, second.target, second.size, second.digest) == (Kind.HARDLINK, "usr/bin/perl", 0, "")


def test_sizes_are_counted_in_blocks(tmp_path: Path) -> None:
    put(tmp_path, "one", b"1")
    put(tmp_path, "two", b"2" * 4097)
    put(tmp_path, "none")
    assert inventory.content_size(inventory.take(tmp_path, {})) == 3 * 4096


def test_a_file_larger_than_the_buffer_is_read_whole(tmp_path: Path) -> None:
    content = os.urandom(inventory._BUFFER * 2 + 17)
    put(tmp_path, "large", content)
    put(tmp_path, "small", b"abc")  # read into the same buffer after it
    found = taken(tmp_path)
    assert found["large"].digest == hashlib.sha256(content).hexdigest()
    assert found["small"].digest == hashlib.sha256(b"abc").hexdigest()


def test_packages_own_their_files_and_bytecode_goes_with_its_source(tmp_path: Path) -> None:
    put(tmp_path, "a/jq.py")
    put(tmp_path, "a/__pycache__/jq.cpython-311.pyc")
    put(tmp_path, "a/__pycache__/jq.cpython-311.opt-1.pyc")
    put(tmp_path, "a/__pycache__/other.cpython-311.pyc")
    found = {entry.path: entry.package for entry in inventory.take(tmp_path, {"a": "jq", "a/jq.py": "jq"})}
    assert found == {
        "a": "",  # folders belong to many
        "a/__pycache__": "",
        "a/__pycache__/jq.cpython-311.opt-1.pyc": "jq",
        "a/__pycache__/jq.cpython-311.pyc": "jq",
        "a/__pycache__/other.cpython-311.pyc": "",
        "a/jq.py": "jq",
    }


def test_it_comes_back_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root")
    (root / os.fsdecode(b"not-utf8-\xff")).touch()
    entries = inventory.take(root, {})
    inventory.write(entries, tmp_path / "one.gz")
    os.utime(root / "etc/hostname", (1, 1))
    inventory.write(inventory.take(root, {}), tmp_path / "two.gz")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert inventory.read(tmp_path / "one.gz") == entries
    head = json.loads(gzip.decompress((tmp_path / "one.gz").read_bytes()).splitlines()[0])
    assert head["algorithm"] == "sha256"
    assert head["columns"][0] == "path"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "not an inventory"),
        (gzip.compress(b"{}\n", mtime=0), "not an inventory"),
        (gzip.compress(b'{"format": "sage-inventory", "version": 1}\n', mtime=0)[:-9], "not an inventory"),
        (gzip.compress(b'{"format": "sage-inventory", "version": 2, "columns": []}\n', mtime=0), "another version"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "inventory.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        inventory.read(path)
