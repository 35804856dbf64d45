# SPDX-License-Identifier: Apache-2.0
"""What waggle-node.env may hold, and how it is told what is wrong with one."""

import re
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.node import settings
from virtual_waggle.node.settings import NodeSettings


def written(folder: Path, text: str) -> Path:
    path = folder / settings.FILE
    path.write_text(text)
    return path


def test_a_file_of_2020_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "WAGGLE_NODE_ID=000000000000000A\nWAGGLE_SUB_ID=0000000000000002\nWAGGLE_BEEHIVE_HOST=beehive.example\n",
    )
    assert settings.read(path) == NodeSettings(
        node_id="000000000000000a",
        vsn="V00A",
        host="000000000000000a.ws-virtual",
        beehive_hosts=("beehive.example",),
        beehive_port=5671,
        registration_port=20022,
        upload_port=20023,
    )


def test_a_beehive_on_several_machines_has_several_addresses(tmp_path: Path) -> None:
    found = settings.read(
        written(tmp_path, "WAGGLE_NODE_ID=0000000000000001\nWAGGLE_BEEHIVE_HOST=hive1, hive2,hive3\n")
    )
    assert found.beehive_hosts == ("hive1", "hive2", "hive3")
    assert found.beehive_host == "hive1"


def test_comments_quotes_and_export_are_read_as_a_shell_does(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "# a node\n\n"
        'export WAGGLE_NODE_ID="0000000000000001"  \n'
        "WAGGLE_NODE_VSN='W023'\n"
        "WAGGLE_BEEHIVE_PORT=1 # one\n",
    )
    found = settings.read(path)
    assert (found.node_id, found.vsn, found.beehive_port) == ("0000000000000001", "W023", 1)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("WAGGLE_NODE_ID=12\n", "waggle-node.env:1: WAGGLE_NODE_ID: expected 16 hexadecimal", "leave it empty"),
        ("\n\nWAGGLE_BEEHIVE_PORT=x\n", "waggle-node.env:3: WAGGLE_BEEHIVE_PORT: expected a whole number", None),
        ("WAGGLE_BEEHIVE_HOST=a b\n", "waggle-node.env:1: WAGGLE_BEEHIVE_HOST: expected the name or", None),
        ("WAGGLE_NODE_VSN=a;b\n", "waggle-node.env:1: WAGGLE_NODE_VSN: expected letters and digits", None),
        ("WAGGLE_BEHIVE_HOST=x\n", "waggle-node.env:1: WAGGLE_BEHIVE_HOST: unknown setting", "'WAGGLE_BEEHIVE_HOST'"),
        ("WAGGLE_NODE_ID=\n", "waggle-node.env: WAGGLE_NODE_ID is not set", "virtual-waggle up"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(
    tmp_path: Path, text: str, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        settings.read(written(tmp_path, text))
    assert error.value.exit_code == 2
    assert hint is None or hint in str(error.value.hint)
