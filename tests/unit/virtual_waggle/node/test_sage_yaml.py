# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.node import sage_yaml

EXAMPLES = Path(__file__).parents[4] / "elements/edge-plugins/edge-plugins-files"
GOOD = """\
name: sky-cover
description: How much of the sky is cloud
version: "0.1.0"
source:
  architectures: [linux/amd64, linux/arm64]
  url: https://example.org/sky.git
  build_args: {MODEL: small, LEVEL: 3, FAST: true}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "sage.yaml").write_text(text)
    (folder / "Dockerfile").write_text("FROM scratch\n")
    return folder


def test_a_plugin_is_built_by_what_it_says(tmp_path: Path) -> None:
    source = sage_yaml.load(write(tmp_path, GOOD))
    assert source.tag == "sky-cover:0.1.0"
    assert (source.context, source.dockerfile) == (tmp_path, tmp_path / "Dockerfile")
    assert source.build_args == (("MODEL", "small"), ("LEVEL", "3"), ("FAST", "true"))


@pytest.mark.parametrize("folder", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_the_example_plugins_are_right(folder: Path) -> None:
    assert sage_yaml.load(folder).name == folder.name


def test_the_folder_may_be_below_or_the_one_of_sage_yaml(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "  directory: plugins/sky\n  dockerfile: Dockerfile\n")
    assert sage_yaml.load(tmp_path).context == tmp_path
    (tmp_path / "plugins/sky").mkdir(parents=True)
    (tmp_path / "plugins/sky/Dockerfile").touch()
    assert sage_yaml.load(tmp_path).context == tmp_path / "plugins/sky"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("name: sky-cover\n", ""), r"sage\.yaml:1: the key 'name' is missing"),
        (GOOD.replace("sky-cover", "Sky Cover"), r"sage\.yaml:1: name: 'Sky Cover' does not match"),
        (GOOD.replace('"0.1.0"', "1.0"), r"sage\.yaml:3: version: expected a text, found 1\.0"),
        (GOOD.replace('"0.1.0"', '"1 0"'), r"sage\.yaml:3: version: '1 0' does not match"),
        (GOOD + "licence: BSD\n", r"sage\.yaml:8: licence: unknown key"),
        (GOOD.replace("linux/arm64", "arm64"), r"sage\.yaml:5: source\.architectures\[1\]: 'arm64' is none"),
        (GOOD.replace("  url: https://example.org/sky.git\n", ""), r"sage\.yaml:4: source: the key 'url' is missing"),
        (GOOD + "  directory: ../other\n", r"sage\.yaml:8: source\.directory: leads out"),
        (GOOD + "  dockerfile: /etc/passwd\n", r"sage\.yaml:8: source\.dockerfile: '/etc/passwd' does not match"),
        (GOOD + "  dockerfile: Dockerfile.gpu\n", r"sage\.yaml:8: source\.dockerfile: there is no .*Dockerfile\.gpu"),
        (GOOD + "inputs:\n  - {id: a}\n", r"sage\.yaml:9: inputs\[0\]: the key 'type' is missing"),
        (GOOD + "name: twice\n", r"sage\.yaml:8: key 'name' stands twice"),
        ("- a list\n", r"sage\.yaml:1: expected a mapping"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        sage_yaml.load(write(tmp_path, text))


def test_a_folder_without_sage_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read .*sage\.yaml"):
        sage_yaml.load(tmp_path)
