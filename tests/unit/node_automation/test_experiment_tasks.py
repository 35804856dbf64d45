# SPDX-License-Identifier: Apache-2.0
"""The tasks of experiments, as Fabric reads their words."""

import copy
from pathlib import Path
from typing import Any

import pytest
from fabric.main import program
from invoke.exceptions import ParseError
from invoke.parser import Parser

from groundwork.errors import InputError
from node_automation import experiment_tasks
from node_automation.tasks import namespace

CONTEXTS = copy.deepcopy(namespace).to_contexts()  # invoke takes the explanations away as it reads them


def parsed(*words: str) -> dict[str, Any]:
    """The arguments of the one task that these words call."""
    contexts = Parser(initial=program.initial_context, contexts=CONTEXTS).parse_argv(list(words))
    found: dict[str, Any] = contexts[1].as_kwargs
    return found


def test_up_takes_a_file_or_a_role() -> None:
    assert parsed("up", "sky.yaml", "--dry-run")["file"] == "sky.yaml"
    given = parsed("up", "--role", "beehive", "--site", "CHI@UC")
    assert (given["file"], given["role"], given["site"]) == ("", "beehive", "CHI@UC")
    assert parsed("up", "sky.yaml", "--role=blank")["file"] == "sky.yaml", "the task tells that both were given"
    with pytest.raises(ParseError, match="file"):
        parsed("up")
    with pytest.raises(ParseError, match="No idea what 'sky"):
        parsed("up", "--role=blank", "sky.yaml")


@pytest.mark.parametrize("name", ["up", "down", "status", "collect", "replay"])
def test_each_argument_is_explained(name: str) -> None:
    assert namespace[name].__doc__
    (context,) = [context for context in CONTEXTS if context.name == name]
    assert [argument.name for argument in context.args.values() if not argument.help] == []


def test_an_experiment_is_named_by_its_name_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text("name: sky\nsites: [CHI@UC]\nimage: i\nnode_types: [t]\nnodes: {blank: 1}\n")
    assert experiment_tasks._name_of(str(path)) == "sky"
    assert experiment_tasks._name_of("sky") == "sky"
    with pytest.raises(InputError, match="can't read"):
        experiment_tasks._name_of("nowhere.yaml")
    with pytest.raises(InputError, match="is no name for an experiment"):
        experiment_tasks._name_of("My Sky")
