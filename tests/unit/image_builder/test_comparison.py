# SPDX-License-Identifier: Apache-2.0
"""What changed between two images is told by package, by file and by folder; and where the bytes go."""

from dataclasses import replace

from image_builder import comparison
from image_builder.comparison import Change, FileChange, PackageChange, SizeChange
from image_builder.inventory import Entry, Kind
from tests.unit.image_builder.trees import file, package

MODULES = "usr/lib/modules/6.1/kernel/a.ko"


def test_bytes_are_told_by_package_and_by_folder_the_largest_first() -> None:
    entries = [
        file("usr/bin/bash", 5000, package="bash"),
        file("usr/bin/sh", 1, package="dash"),
        file(MODULES, 9000, package="linux"),
        file("etc/hostname", 5),
        Entry("usr/bin/again", Kind.HARDLINK, 0, 0, 0, 0, "usr/bin/bash", "", "bash"),
    ]
    assert list(comparison.by_package(entries).items()) == [
        ("linux", 12288),
        ("bash", 8192),
        ("(no package)", 4096),
        ("dash", 4096),
    ]
    assert comparison.by_folder(entries) == {"/usr/bin": 12288, "/usr/lib/modules": 12288, "/etc": 4096}
    assert [entry.path for entry in comparison.largest_files(entries, 2)] == [MODULES, "usr/bin/bash"]


def test_packages_that_came_went_or_changed_are_named_with_versions() -> None:
    before = [package("a"), package("b"), package("c", "1"), replace(package("m"), arch="i386")]
    after = [package("a"), package("c", "2"), package("d"), package("m"), replace(package("m"), arch="i386")]
    assert comparison.compare_packages(before, after) == (
        PackageChange("b", "amd64", Change.REMOVED, "1", None),
        PackageChange("c", "amd64", Change.CHANGED, "1", "2"),
        PackageChange("d", "amd64", Change.ADDED, None, "1"),
        PackageChange("m", "amd64", Change.ADDED, None, "1"),
    )


def test_files_are_told_with_what_changed() -> None:
    link = Entry("etc/link", Kind.SYMLINK, 0o777, 0, 0, 0, "old", "", "")
    before = [file("etc/a", 1), file("etc/b", 2), file("etc/c", 3), file("etc/d", 4), link, file("etc/f", 5)]
    after = [
        file("etc/a", 1),
        file("etc/b", 2, digest="other", package="p"),
        file("etc/c", 3, mode=0o600, uid=1),
        file("etc/e", 6),
        link._replace(target="new"),
        link._replace(path="etc/f"),
    ]
    assert comparison.compare(before, after).files == (
        FileChange("etc/b", Change.CHANGED, ("content",), 2, 2, "p"),
        FileChange("etc/c", Change.CHANGED, ("mode", "owner"), 3, 3, ""),
        FileChange("etc/d", Change.REMOVED, (), 4, 0, ""),
        FileChange("etc/e", Change.ADDED, (), 0, 6, ""),
        FileChange("etc/f", Change.CHANGED, ("kind",), 5, 0, ""),
        FileChange("etc/link", Change.CHANGED, ("target",), 0, 0, ""),
    )


def test_a_second_name_of_a_file_is_no_other_content() -> None:
    lone = file("usr/bin/b", 7)
    linked = [file("usr/bin/a", 7), Entry("usr/bin/b", Kind.HARDLINK, 0o644, 0, 0, 0, "usr/bin/a", "", "")]
    changes = {row.path: (row.change, row.what) for row in comparison.compare([lone], linked).files}
    assert changes == {"usr/bin/a": (Change.ADDED, ()), "usr/bin/b": (Change.CHANGED, ("names",))}


def test_what_grew_most_comes_first() -> None:
    before = [file("usr/bin/a", 4096, package="a"), file("etc/b", 4096), file("var/lib/x/y", 4096 * 3)]
    after = [file("usr/bin/a", 4096 * 3, package="a"), file("etc/b", 4096), file("opt/c", 4096)]
    found = comparison.compare(before, after)
    assert found.folder_sizes == (
        SizeChange("/var/lib/x", 12288, 0),
        SizeChange("/usr/bin", 4096, 12288),
        SizeChange("/opt", 0, 4096),
    )
    assert found.package_sizes[-1] == SizeChange("a", 4096, 12288)
    assert (found.total.before, found.total.after) == (20480, 20480)


def test_the_same_image_twice_has_no_difference() -> None:
    entries, packages = [file("etc/a", 1), file("etc/b", 2)], [package("a")]
    found = comparison.compare(entries, entries, packages, packages)
    assert not found.packages
    assert not found.files
    assert not found.folder_sizes
    assert found.total.growth == 0
