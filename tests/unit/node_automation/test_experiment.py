# SPDX-License-Identifier: Apache-2.0
"""Experiments: one value out of a file and its roles, and errors that name file, line and key."""

from pathlib import Path

import pytest

from chameleon_sites.sites import load_sites
from groundwork import products
from groundwork.errors import InputError
from node_automation import experiment as experiments
from node_automation.experiment import Experiment, Link, Node

PROJECT = Path(__file__).parents[3]
SITES = load_sites()
HEAD = "name: sky\nsites: [CHI@UC, CHI@TACC]\nnode_types: [compute_skylake]\nimage: Sage-Ubuntu24.04\n"


def read(folder: Path, text: str) -> Experiment:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return experiments.load(path, SITES)


def test_the_example_is_an_experiment() -> None:
    found = experiments.load(PROJECT / "docs/examples/sky.yaml", SITES)
    assert found.name == "sky"
    assert next(group.role.name for group in found.groups) == "beehive"
    assert products.parse(Experiment, products.to_text(found).encode(), "here") == found


def test_nodes_links_and_lengths(tmp_path: Path) -> None:
    text = HEAD + "duration: 2d\nnodes: {waggle: 3, beehive: {number: 2, sites: [KVM@TACC], node_types: [m1.large]}}\n"
    found = read(tmp_path, text + "links: {waggle: beehive}\nnotify: {command: [mail, -s, done]}\n")
    assert found.seconds == 2 * 86400
    assert [group.role.name for group in found.groups] == ["beehive", "waggle"], "who gives stands before who takes"
    assert found.groups[0].sites == ("KVM@TACC",)
    assert found.groups[1].sites == ("CHI@UC", "CHI@TACC")
    assert found.links == (Link("waggle", "beehive", "beehive"),)
    assert [node.name for node in experiments.nodes(found)] == [
        "sky-beehive-1",
        "sky-beehive-2",
        "sky-waggle-1",
        "sky-waggle-2",
        "sky-waggle-3",
    ]
    givers = [experiments.givers_of(found, Node(f"sky-waggle-{n}", "waggle", n))["beehive"].name for n in (1, 2, 3)]
    assert givers == ["sky-beehive-1", "sky-beehive-2", "sky-beehive-1"]
    assert found.notify is not None
    assert found.notify.words == ("mail", "-s", "done")
    assert len(experiments.node_id("sky-waggle-1")) == 16
    assert experiments.node_id("sky-waggle-1") != experiments.node_id("sky-waggle-2")


def test_variables_are_for_the_roles_that_know_them(tmp_path: Path) -> None:
    text = HEAD + "variables: {BENCH_SECONDS: 5}\nnodes: {blank: 1, bench: {variables: {BENCH_THREADS: 1}}}\n"
    found = read(tmp_path, text)
    assert found.group("bench").variables == {"BENCH_SECONDS": "5", "BENCH_THREADS": "1"}
    assert found.group("blank").variables == {}


def test_roles_of_ones_own_lie_where_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/blank.yaml").write_text("description: mine\n")
    found = read(tmp_path, HEAD + "roles: own\nnodes: {blank: 1}\n")
    assert found.groups[0].role.description == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, ":1: the key 'nodes' is missing"),
        (HEAD.replace("name: sky", "name: My Sky") + "nodes: {blank: 1}\n", ":1: name: 'My Sky' is no name"),
        (HEAD + "nodes:\n  blank: 0\n", ":6: nodes.blank: "),
        (HEAD + "nodes:\n  blank: {nmber: 1}\n", ":6: nodes.blank"),
        (HEAD + "nodes:\n  blnk: 1\n", ":6: nodes.blnk: there is no role 'blnk'"),
        (HEAD + "nodes:\n  blank: {sites: [CHI@UC, CHI@XY]}\n", ":6: nodes.blank.sites[1]: unknown site 'CHI@XY'"),
        (HEAD.replace("TACC", "Edge") + "nodes: {blank: 1}\n", ":2: sites[1]: CHI@Edge has containers"),
        ("name: a\nnodes:\n  blank: 1\n", ":3: nodes.blank: no site is named"),
        ("name: a\nsites: [CHI@UC]\nnodes:\n  blank: 1\n", ":4: nodes.blank: no image is named"),
        ("name: a\nsites: [CHI@UC]\nimage: i\nnodes:\n  blank: 1\n", ":5: nodes.blank: no node type is named"),
        (HEAD + "duration: soon\nnodes: {blank: 1}\n", ":5: duration: 'soon' is no length of time"),
        (HEAD + "duration: 8d\nnodes: {blank: 1}\n", ":5: duration: expected from 10m to 7d"),
        (HEAD + "variables:\n  SPEED: 1\nnodes: {bench: 1}\n", ":6: variables.SPEED: no role of this experiment"),
        (HEAD + "nodes:\n  bench:\n    variables: {SPEED: 1}\n", ":7: nodes.bench.variables.SPEED: the role 'bench'"),
        (HEAD + "nodes:\n  waggle: 1\n", ":6: nodes.waggle: these nodes need a 'beehive'"),
        (HEAD + "nodes: {waggle: 1, blank: 1}\nlinks:\n  waggle: beehive\n", ":7: links.waggle: no node has the role"),
        (
            HEAD + "nodes: {waggle: 1, blank: 1}\nlinks:\n  waggle: [blank]\n",
            ":7: links.waggle[0]: 'waggle' takes noth",
        ),
        (HEAD + "nodes: {beehive: 1}\nlinks:\n  waggle: beehive\n", ":7: links.waggle: no node has this role"),
        (HEAD + "nodes: {blank: 1}\ncollect:\n  bench: {}\n", ":7: collect.bench: no node has this role"),
        (HEAD + "nodes: {blank: 1}\ncollect:\n  blank: {paths: ['${X}']}\n", ":7: collect.blank.paths[0]: nothing"),
        (HEAD + "nodes: {blank: 150, bench: 51}\n", ":5: nodes: these are more than 200 nodes"),
        (HEAD + "nodes: {blank: 1}\nroles: nowhere\n", ":6: roles: there is no folder"),
        (HEAD + "nodes: {blank: 1}\nnotify: {}\n", ":6: notify: the key 'command' is missing"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert f"{tmp_path}/experiment.yaml{said}" in str(caught.value)


def test_a_need_that_is_not_met_tells_the_link_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, HEAD + "nodes: {waggle: 1, beehive: 1}\n")
    assert caught.value.hint == "links: {waggle: beehive}"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"own/{one}.yaml").write_text(f"offers: {{{one}: {{}}}}\nneeds: {{{other}: {{}}}}\n")
    with pytest.raises(InputError, match="links: goes round in a circle"):
        read(tmp_path, HEAD + "roles: own\nnodes: {a: 1, b: 1}\nlinks: {a: b, b: a}\n")


def test_an_experiment_of_one_role_takes_no_file() -> None:
    found = experiments.of_role("hive", "beehive", SITES, sites=["CHI@UC"], node_types=["compute_skylake"])
    assert [node.name for node in experiments.nodes(found)] == ["hive-beehive-1"]
    assert (found.groups[0].image, found.seconds) == ("Sage-Ubuntu24.04", 4 * 3600)
    with pytest.raises(InputError, match="takes something of another"):
        experiments.of_role("w", "waggle", SITES, sites=["CHI@UC"], node_types=["compute_skylake"])
    with pytest.raises(InputError, match="no site is named"):
        experiments.of_role("hive", "beehive", SITES, sites=[], node_types=["compute_skylake"])
    with pytest.raises(InputError, match="names no image"):
        experiments.of_role("b", "blank", SITES, sites=["CHI@UC"], node_types=["compute_skylake"])


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("4h", 14400), ("7d", 604800), ("1d12h", 129600)])
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert experiments.read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "h", "0h", "1.5h", "9m", "169h", "-4h", "4 h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InputError):
        experiments.read_duration(text)
