# SPDX-License-Identifier: Apache-2.0
"""The tree itself tells what software it holds and which package each file belongs to."""

import json
from pathlib import Path

from image_builder import inventory, recipe, software
from image_builder.manifest import Package
from image_builder.software import PythonPackage
from tests.unit.image_builder.trees import put, small_tree


def test_files_belong_to_packages_also_where_usr_is_merged_and_a_file_is_diverted(tmp_path: Path) -> None:
    found = software.owners(small_tree(tmp_path))
    assert found["usr/bin/bash"] == "bash"
    assert found["usr/bin/sh"] == "bash", "the diverter's own file stays in its place"
    assert found["usr/bin/sh.distrib"] == "dash"
    assert found["var/lib/dpkg/info/python3-jq.md5sums"] == "python3-jq"
    assert found["var/lib/dpkg/info/dash:amd64.list"] == "dash"
    assert "etc/hostname" not in found


def test_python_packages_that_dpkg_does_not_own_are_found_and_so_are_ours(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    put(root, "opt/broken.dist-info/METADATA", b"\xff\xfe")
    found = software.python_packages(root, inventory.take(root, software.owners(root)))
    assert found == (
        PythonPackage("old", "3", "opt/old/old.egg-info/PKG-INFO"),
        PythonPackage("groundwork", "0.1.0", "opt/virtual-waggle/groundwork", recipe.payload_digest(recipe.PAYLOAD[0])),
        PythonPackage("waggle", "0.5", "usr/local/lib/python3.11/dist-packages/waggle-0.5.dist-info/METADATA"),
    )


def test_container_images_are_those_of_the_highest_layer_that_has_any(tmp_path: Path) -> None:
    def layer(name: str, *images: str) -> Path:
        store = tmp_path / name / "opt/virtual-waggle/images"
        store.mkdir(parents=True)
        package = {"name": "p", "version": "2", "arch": "all", "source": "s", "source_version": "1"}
        rows = [{"name": image, "digest": "sha256:0", "size": 1, "packages": [package]} for image in images]
        (store / "images.json").write_text(json.dumps(rows))
        return tmp_path / name

    below, above = layer("below", "old"), layer("above", "sage/waggle", "sage/rabbitmq")
    (tmp_path / "top").mkdir()
    found = software.containers([below, above, tmp_path / "top"])
    assert [image.name for image in found] == ["sage/waggle", "sage/rabbitmq"]
    assert found[0].packages == (Package("p", "2", "all", "s", "1"),)
    assert software.containers([tmp_path / "top"]) == ()
