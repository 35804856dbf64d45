# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.node import new_plugin, plugin_images, sage_yaml


def test_a_new_plugin_is_all_that_a_build_takes(tmp_path: Path) -> None:
    made = new_plugin.make("sky-cover", tmp_path)
    assert {path.name for path in made} == {
        *("Dockerfile", "README.md", "main.py", "requirements.txt", "sage.yaml", "test_main.py")
    }
    source = sage_yaml.load(tmp_path / "sky-cover")
    assert source.tag == "sky-cover:0.1.0"
    assert plugin_images.default_base(source.dockerfile.read_text()) is not None
    assert "NAME" not in "".join(path.read_text() for path in made if path.suffix in (".yaml", ".md"))
    assert "# sky-cover\n" in (tmp_path / "sky-cover/README.md").read_text()


@pytest.mark.parametrize("name", ["", "Sky", "../sky", "a/b", "-a", "a_b", "a" * 65])
def test_a_name_that_no_image_could_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no name for a plugin"):
        new_plugin.make(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "sky").mkdir()
    with pytest.raises(InputError, match="is there already"):
        new_plugin.make("sky", tmp_path)
