# SPDX-License-Identifier: Apache-2.0
"""Plans: what is missing is made, what stands is left, and killed after any step nothing is made twice."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_sites.sites import load_sites
from groundwork import products
from node_automation import experiment as experiments
from node_automation import ledger, plan
from node_automation.experiment import Experiment, Image
from node_automation.ledger import Run
from node_automation.plan import NoPlace, Plan, Standing, StandingLease, StandingNode, Step, StepKind

SITES = load_sites()
SLUGS = {name: site.slug for name, site in SITES.items()}
RUN = Run("sky", "0123abcd")
IMAGE = Image("11111111-1111-1111-1111-111111111111", "Sage-Ubuntu24.04", "ab" * 64)
SKY = """
name: sky
sites: [CHI@UC, CHI@TACC]
node_types: [compute_skylake, compute_icelake]
image: Sage-Ubuntu24.04
nodes: {beehive: 1, waggle: 2, blank: {number: 1, sites: [CHI@TACC]}}
links: {waggle: beehive}
"""


@pytest.fixture
def sky(tmp_path: Path) -> Experiment:
    path = tmp_path / "sky.yaml"
    path.write_text(SKY)
    return experiments.load(path, SITES)


def nothing(**free: int) -> Standing:
    """Nothing stands; ``free`` by site's slug."""
    known = {"CHI@UC": free.get("uc", 10), "CHI@TACC": free.get("tacc", 10)}
    return Standing(
        run=RUN,
        free={(site, "compute_skylake"): number for site, number in known.items()},
        images={(site, "Sage-Ubuntu24.04"): IMAGE for site in known},
    )


def made(experiment: Experiment, standing: Standing, full: Mapping[tuple[str, str], str] | None = None) -> Plan:
    found = plan.make(experiment, standing, slugs=SLUGS, full=full)
    keys = [step.key for step in found.steps]
    assert len(keys) == len(set(keys))
    for position, step in enumerate(found.steps):
        assert set(step.after) <= set(keys[:position]), "one by one they could be done in this order"
    return found


def kinds(found: Plan, about: str) -> list[StepKind]:
    return [step.kind for step in found.steps if step.about == about]


class Cloud:
    """What a plan's steps would make of what stands."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self._number = len(standing.leases) + len(standing.nodes)

    def do(self, found: Plan, step: Step) -> None:
        stands = self.standing
        self._number += 1
        if step.kind is StepKind.LEASE:
            wanted = found.lease(step.about)
            name = ledger.lease_name(RUN, SLUGS[wanted.site], wanted.part)
            assert name not in {lease.name for lease in stands.leases}, "a lease is made twice"
            lease = StandingLease(
                wanted.site, f"lease-{self._number}", name, "ACTIVE", wanted.node_type, wanted.hosts, None
            )
            free = dict(stands.free)
            free[wanted.site, wanted.node_type] -= wanted.hosts
            self.standing = replace(stands, leases=(*stands.leases, lease), free=free)
        elif step.kind is StepKind.LAUNCH:
            wanted_node = found.node(step.about)
            assert step.about not in {node.name for node in stands.nodes}, "a node is made twice"
            by_key = {wanted.key: ledger.lease_name(RUN, SLUGS[wanted.site], wanted.part) for wanted in found.leases}
            lease_id = wanted_node.lease
            if lease_id in by_key:
                lease_id = next(lease.id for lease in stands.leases if lease.name == by_key[lease_id])
            node = StandingNode(
                step.site, f"server-{self._number}", step.about, "ACTIVE", lease_id, IMAGE.id, "", None, "10.0.0.1"
            )
            self.standing = replace(stands, nodes=(*stands.nodes, node))
        elif step.kind is StepKind.ADDRESS:
            self._change(step.about, address="192.0.2.1")
        elif step.kind is StepKind.START:
            self._change(step.about, started=found.node(step.about).digest)
        elif step.kind is StepKind.DROP_NODE:
            self.standing = replace(stands, nodes=tuple(node for node in stands.nodes if node.id != step.about))
        elif step.kind is StepKind.DROP_LEASE:
            self.standing = replace(stands, leases=tuple(row for row in stands.leases if row.id != step.about))
        elif step.kind is StepKind.WAIT_LEASE:
            rows = tuple(replace(row, status="ACTIVE") if row.id == step.about else row for row in stands.leases)
            self.standing = replace(stands, leases=rows)
        elif step.kind is StepKind.WAIT_NODE:
            self._change(step.about, status="ACTIVE")

    def _change(self, name: str, **fields: str) -> None:
        rows = tuple(replace(node, **fields) if node.name == name else node for node in self.standing.nodes)
        self.standing = replace(self.standing, nodes=rows)


def all_there(experiment: Experiment) -> Standing:
    cloud = Cloud(nothing())
    found = made(experiment, cloud.standing)
    for step in found.steps:
        cloud.do(found, step)
    return cloud.standing


def test_where_nothing_stands_all_is_made(sky: Experiment) -> None:
    found = made(sky, nothing())
    assert [(lease.site, lease.node_type, lease.hosts) for lease in found.leases] == [
        ("CHI@UC", "compute_skylake", 3),
        ("CHI@TACC", "compute_skylake", 1),
    ]
    assert [(node.name, node.site) for node in found.nodes] == [
        ("sky-beehive-1", "CHI@UC"),
        ("sky-blank-1", "CHI@TACC"),
        ("sky-waggle-1", "CHI@UC"),
        ("sky-waggle-2", "CHI@UC"),
    ]
    own = [StepKind.LAUNCH, StepKind.ADDRESS, StepKind.REACH]
    assert kinds(found, "sky-beehive-1") == [*own, StepKind.PUT, StepKind.START, StepKind.CHECK]
    assert kinds(found, "sky-waggle-2") == [*own, StepKind.TAKE, StepKind.START, StepKind.CHECK]
    assert kinds(found, "sky-blank-1") == [*own, StepKind.START, StepKind.CHECK]
    take = next(step for step in found.steps if step.key == "take sky-waggle-1 beehive")
    assert take.after == ("reach sky-waggle-1", "check sky-beehive-1")
    launches = [step for step in found.steps if step.kind is StepKind.LAUNCH]
    assert {step.after for step in launches if step.site == "CHI@UC"} == {("lease CHI@UC compute_skylake",)}


def test_a_plan_can_be_printed(sky: Experiment) -> None:
    found = made(sky, nothing())
    lines = plan.text_of(found)
    assert lines[0] == "lease 3 nodes of type compute_skylake at CHI@UC for 4 h"
    assert f"launch sky-waggle-1 at CHI@UC on compute_skylake, image Sage-Ubuntu24.04 ({IMAGE.id})" in lines
    assert "take the beehive of sky-beehive-1 for sky-waggle-1" in lines
    assert "put 0 files on sky-beehive-1, open 4 ports" in lines
    assert products.parse(Plan, products.to_text(found).encode(), "here") == found


def test_where_all_stands_nodes_are_looked_at_and_nothing_is_made(sky: Experiment) -> None:
    found = made(sky, all_there(sky))
    assert found.leases == ()
    assert {step.kind for step in found.steps} == {StepKind.REACH, StepKind.CHECK}
    assert all(step.repairs for step in found.steps if step.kind is StepKind.CHECK)
    assert all(node.server_id for node in found.nodes)


def test_killed_after_any_step_nothing_is_made_twice(sky: Experiment) -> None:
    whole = made(sky, nothing())
    final = all_there(sky)
    for killed in range(len(whole.steps) + 1):
        cloud = Cloud(nothing())
        for step in whole.steps[:killed]:
            cloud.do(whole, step)
        again = made(sky, cloud.standing)
        for step in again.steps:
            cloud.do(again, step)  # asserts that nothing is made twice
        stands = cloud.standing
        assert sorted((node.name, node.site, node.started) for node in stands.nodes) == sorted(
            (node.name, node.site, node.started) for node in final.nodes
        )
        assert sum(lease.hosts for lease in stands.leases) == 4
        assert {step.kind for step in made(sky, stands).steps} == {StepKind.REACH, StepKind.CHECK}


def test_a_full_site_is_passed_over_for_the_next(sky: Experiment) -> None:
    found = made(sky, nothing(uc=2))
    # The Beehive finds room, the two Waggle nodes, which come last, do not.
    assert [node.site for node in found.nodes] == ["CHI@UC", "CHI@TACC", "CHI@TACC", "CHI@TACC"]
    found = made(sky, nothing(), full={("CHI@UC", "compute_skylake"): "no"})
    assert {node.site for node in found.nodes} == {"CHI@TACC"}


def test_where_no_site_has_room_the_reasons_are_told(sky: Experiment) -> None:
    standing = replace(nothing(uc=0, tacc=2), troubles={"CHI@UC": "it does not answer"})
    with pytest.raises(NoPlace) as caught:
        made(sky, standing)
    said = str(caught.value)
    assert "2 nodes of the role 'waggle'" in said
    assert "CHI@UC: it does not answer" in said
    assert "CHI@TACC has 0 of type compute_skylake free" in said
    assert "CHI@TACC has no nodes of type compute_icelake" in said
    arm = {("CHI@UC", "compute_skylake"): "aarch64", ("CHI@TACC", "compute_skylake"): "x86_64"}
    with pytest.raises(NoPlace) as caught:
        made(sky, replace(nothing(), arches=arm), full={("CHI@TACC", "compute_skylake"): "CHI@TACC: no hosts"})
    assert "CHI@UC: compute_skylake is aarch64, the role is for x86_64" in str(caught.value)
    assert "CHI@TACC: no hosts" in str(caught.value)
    with pytest.raises(NoPlace, match=r"CHI@UC has no image Sage-Ubuntu24\.04"):
        made(sky, replace(nothing(), images={}))


def test_a_node_that_is_missing_gets_the_room_that_its_lease_has(sky: Experiment) -> None:
    stands = all_there(sky)
    half = replace(stands, nodes=tuple(node for node in stands.nodes if node.name != "sky-waggle-2"))
    found = made(sky, half)
    assert found.leases == ()
    assert kinds(found, "sky-waggle-2")[0] is StepKind.LAUNCH
    assert found.node("sky-waggle-2").lease == found.node("sky-waggle-1").lease
    assert kinds(found, "sky-waggle-1") == [StepKind.REACH, StepKind.CHECK]


def test_what_is_in_error_is_replaced(sky: Experiment) -> None:
    stands = all_there(sky)
    nodes = tuple(replace(node, status="ERROR") if node.name == "sky-beehive-1" else node for node in stands.nodes)
    found = made(sky, replace(stands, nodes=nodes))
    assert kinds(found, nodes[0].id) == [StepKind.DROP_NODE]
    launch = next(step for step in found.steps if step.kind is StepKind.LAUNCH)
    assert launch.after == (f"drop node sky-beehive-1 {nodes[0].id}",)
    assert found.leases == (), "its lease has room for the new one"
    # The new Beehive knows no node: those that reported to the old one take from it anew.
    assert kinds(found, "sky-waggle-1") == [StepKind.REACH, StepKind.TAKE, StepKind.START, StepKind.CHECK]


@pytest.mark.parametrize("status", ["ERROR", "TERMINATED"])
def test_a_lease_that_is_over_or_in_error_is_replaced_with_what_stood_on_it(sky: Experiment, status: str) -> None:
    stands = all_there(sky)
    bad = next(lease for lease in stands.leases if lease.site == "CHI@UC")
    leases = tuple(replace(lease, status=status) if lease == bad else lease for lease in stands.leases)
    found = made(sky, replace(stands, leases=leases))
    (lease,) = found.leases
    assert (lease.site, lease.hosts, lease.part) == ("CHI@UC", 3, "compute_skylake-2"), "a name of its own"
    dropped = [step.kind for step in found.steps if step.kind in (StepKind.DROP_LEASE, StepKind.DROP_NODE)]
    assert dropped == [StepKind.DROP_LEASE] + [StepKind.DROP_NODE] * 3
    assert kinds(found, "sky-blank-1") == [StepKind.REACH, StepKind.CHECK]


@pytest.mark.parametrize("status", ["PENDING", "CREATING"])
def test_a_lease_on_its_way_is_waited_for(sky: Experiment, status: str) -> None:
    stands = all_there(sky)
    leases = tuple(replace(lease, status=status) for lease in stands.leases)
    found = made(sky, replace(stands, leases=leases, nodes=()))
    assert found.leases == ()
    launch = next(step for step in found.steps if step.about == "sky-waggle-1")
    assert [step.kind for step in found.steps if step.key in launch.after] == [StepKind.WAIT_LEASE]


def test_a_server_on_its_way_is_waited_for(sky: Experiment) -> None:
    stands = all_there(sky)
    nodes = tuple(replace(node, status="BUILD", address=None, started="") for node in stands.nodes)
    found = made(sky, replace(stands, nodes=nodes))
    assert kinds(found, "sky-blank-1")[:3] == [StepKind.WAIT_NODE, StepKind.ADDRESS, StepKind.REACH]


def test_of_two_servers_of_one_name_one_stays(sky: Experiment) -> None:
    stands = all_there(sky)
    twin = replace(stands.nodes[0], id="twin")
    found = made(sky, replace(stands, nodes=(*stands.nodes, twin)))
    assert [step.about for step in found.steps if step.kind is StepKind.DROP_NODE] == ["twin"]


def test_a_change_of_a_role_starts_its_nodes_anew_and_those_that_take_of_them(sky: Experiment) -> None:
    stands = all_there(sky)
    beehive = sky.group("beehive")
    changed = replace(beehive, role=replace(beehive.role, variables={"BEEHIVE_RETENTION": "4w"}))
    groups = tuple(changed if group == beehive else group for group in sky.groups)
    found = made(replace(sky, groups=groups), stands)
    assert kinds(found, "sky-beehive-1") == [StepKind.REACH, StepKind.PUT, StepKind.START, StepKind.CHECK]
    assert kinds(found, "sky-waggle-1") == [StepKind.REACH, StepKind.TAKE, StepKind.START, StepKind.CHECK]
    assert kinds(found, "sky-blank-1") == [StepKind.REACH, StepKind.CHECK]


def test_more_nodes_take_a_further_lease_and_fewer_are_noted(sky: Experiment) -> None:
    stands = all_there(sky)

    def with_waggles(number: int) -> Experiment:
        groups = tuple(replace(group, number=number) if group.role.name == "waggle" else group for group in sky.groups)
        return replace(sky, groups=groups)

    more = made(with_waggles(4), stands)
    assert [(lease.hosts, lease.part) for lease in more.leases] == [(2, "compute_skylake-2")]
    assert [step.about for step in more.steps if step.kind is StepKind.LAUNCH] == ["sky-waggle-3", "sky-waggle-4"]
    fewer = made(with_waggles(1), stands)
    assert {step.kind for step in fewer.steps} == {StepKind.REACH, StepKind.CHECK}, "what stands may hold data"
    assert fewer.notes == ("sky-waggle-2 stands at CHI@UC and is not in the experiment; `fab node.delete` drops it",)


def test_a_newer_image_replaces_no_node(sky: Experiment) -> None:
    stands = all_there(sky)
    newer = replace(IMAGE, id="2" * 36)
    found = made(sky, replace(stands, images=dict.fromkeys(stands.images, newer)))
    assert {step.kind for step in found.steps} == {StepKind.REACH, StepKind.CHECK}
    assert len(found.notes) == 4
    assert found.nodes[0].from_image.id == IMAGE.id
