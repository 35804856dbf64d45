# SPDX-License-Identifier: Apache-2.0
"""The commands of ``sage-image`` that care for what stands, at three real Glances: each with its dry run, with wrong
words, twice in a row, and with a site that is down."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from image_builder import catalog, journal, manifest, rotation
from image_builder.catalog import Change, SiteImage
from image_builder.publication import Outcome
from tests.integration import commands, glance_proxy
from tests.integration.commands import Ran
from tests.integration.glance_proxy import Call, DropCall, Moment
from tests.integration.test_publish import NAMES, Bench, bench, outcomes  # noqa: F401

UC = "CHI@UC"


@pytest.fixture
def site(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:  # noqa: F811
    """The three sites, with the journal in the test's own folder, and nothing of ours there: other tests leave some."""
    monkeypatch.setenv("XDG_STATE_HOME", str(bench.folder / "state"))
    for connection in bench.connections.values():
        for image in catalog.list_ours(connection):
            catalog.delete(connection, image.id)
    return bench


def sage_image(*words: str, code: int = 0) -> Ran:
    ran = commands.run("sage-image", *words, timeout=60)
    assert ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err
    return ran


def report(*words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """What ``--json`` tells, by site."""
    return {row["site"]: row for row in json.loads(sage_image(*words, "--json", code=code).out)["sites"]}


def stand(bench: Bench, numbers: Sequence[int], *names: str) -> None:  # noqa: F811
    """Publish builds of these numbers, one after the other."""
    for number in numbers:
        sites = [load_sites()[name] for name in names or NAMES]
        assert set(outcomes(bench.publish(bench.build(number), *sites, keep=9))) == {Outcome.PUBLISHED}


def current(bench: Bench, name: str = UC) -> SiteImage:  # noqa: F811
    (image,) = [image for image in bench.ours(name) if image.name == bench.name]
    assert not image.hidden
    assert image.state == "current"
    return image


def dated(bench: Bench, number: int) -> str:  # noqa: F811
    return f"{bench.name}-20261120T03{number:02}00Z"


def everything(bench: Bench) -> list[SiteImage]:  # noqa: F811
    return [image for name in NAMES for image in bench.ours(name)]


def take_down(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    document = yaml.safe_load(bench.clouds_yaml.read_text())
    document["clouds"][load_sites()[name].slug]["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    (bench.folder / "clouds.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(bench.folder / "clouds.yaml"))


@pytest.fixture
def foreign(site: Bench) -> Iterator[Any]:
    """An image of this project that another program made."""
    connection = site.connections[UC]
    made = connection.image.create_image(
        f"{site.name}-old",
        data=b"another program's",
        disk_format="raw",
        container_format="bare",
        visibility="private",
        **{"build-timestamp": "2026-01-02T03:04:05Z", "build-variant": "sage"},
    )
    yield connection.image.get_image(made.id)
    connection.image.delete_image(made.id, ignore_missing=True)


# rollback


def test_a_rollback_makes_the_build_before_current_at_every_site(site: Bench) -> None:
    stand(site, (1, 2, 3))
    before = everything(site)
    told = report("rollback", site.name, "--dry-run")
    assert everything(site) == before
    assert [row["outcome"] for row in told.values()] == ["would-change"] * 3
    old, new = current(site), next(image for image in site.ours() if image.name == dated(site, 2))
    assert told[UC]["difference"] == [
        f"- {site.name}  {old.id}  current",
        f"+ {dated(site, 3)}  {old.id}  previous, withdrawn",
        f"- {dated(site, 2)}  {new.id}  previous",
        f"+ {site.name}  {new.id}  current",
    ]
    done = report("rollback", site.name)
    assert [row["outcome"] for row in done.values()] == ["changed"] * 3
    assert done[UC]["difference"] == told[UC]["difference"]
    assert done[UC]["steps"] == told[UC]["steps"]
    for name in NAMES:
        assert current(site, name).recipe_digest == "recipe-2"
        assert site.names(name) == ["Sage", "Sage-20261120T030100Z", "Sage-20261120T030300Z"]


def test_a_second_rollback_goes_one_further_and_a_third_finds_nothing(site: Bench) -> None:
    stand(site, (1, 2, 3), UC)
    sage_image("rollback", site.name, "--site", UC)
    sage_image("rollback", site.name, "--site", UC)
    assert current(site).recipe_digest == "recipe-1"
    before = site.ours()
    ran = sage_image("rollback", site.name, "--site", UC, code=2)
    assert "no build" in ran.err
    assert dated(site, 3) in ran.err
    assert "withdrawn" in ran.err
    assert site.ours() == before


def test_a_rollback_to_a_date_takes_the_newest_build_by_then(site: Bench) -> None:
    stand(site, (1, 2, 3, 4), UC)
    sage_image("rollback", site.name, "--to", "20261120T030230Z", "--site", UC)
    assert current(site).recipe_digest == "recipe-2"
    again = report("rollback", site.name, "--to", "2026-11-20T03:02:00Z", "--site", UC)
    assert again[UC]["outcome"] == "unchanged"
    ran = sage_image("rollback", site.name, "--to", "2026-11-19", "--site", UC, code=2)
    assert all(dated(site, number) in ran.err for number in (1, 3, 4))
    ran = sage_image("rollback", site.name, "--to", "yesterday", code=2)
    assert "found 'yesterday'" in ran.err


def test_what_was_rolled_back_is_not_published_again_unless_forced(site: Bench) -> None:
    first, second, third = site.build(1), site.build(2), site.build(3)
    for folder in (first, second):
        site.publish(folder, load_sites()[UC])
    sage_image("rollback", site.name, "--site", UC)
    made = site.publish(second, load_sites()[UC])
    assert outcomes(made) == [Outcome.HELD]
    assert "a rollback withdrew" in made.sites[0].warnings[-1]
    assert outcomes(site.publish(second, load_sites()[UC], dry_run=True)) == [Outcome.HELD]
    assert current(site).recipe_digest == "recipe-1"
    # However few are kept, that it was withdrawn is not forgotten.
    sage_image("prune", site.name, "--keep", "1", "--site", UC)
    assert outcomes(site.publish(second, load_sites()[UC], keep=1)) == [Outcome.HELD]
    assert outcomes(site.publish(second, load_sites()[UC], force=True)) == [Outcome.PUBLISHED]
    assert current(site).recipe_digest == "recipe-2"
    # A new recipe is none of a rollback's business.
    sage_image("rollback", site.name, "--to", "20261120T030100Z", "--site", UC)
    assert outcomes(site.publish(third, load_sites()[UC])) == [Outcome.PUBLISHED]
    assert current(site).recipe_digest == "recipe-3"


def test_a_site_that_is_down_stops_no_rollback_elsewhere(site: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stand(site, (1, 2))
    take_down(site, "CHI@TACC", monkeypatch)
    done = report("rollback", site.name, code=3)
    assert [done[name]["outcome"] for name in NAMES] == ["changed", "failed", "changed"]
    assert "connection refused" in done["CHI@TACC"]["problem"]["message"]
    assert [current(site, name).recipe_digest for name in NAMES] == ["recipe-1", "recipe-2", "recipe-1"]


def test_a_rollback_first_ends_a_swap_that_was_left_half_done(site: Bench) -> None:
    stand(site, (1, 2, 3), UC)
    catalog.change(site.connections[UC], current(site).id, Change(hidden=True))
    told = report("rollback", site.name, "--site", UC, "--dry-run")
    done = report("rollback", site.name, "--site", UC)
    assert done[UC]["difference"] == told[UC]["difference"]
    assert current(site).recipe_digest == "recipe-2"
    assert site.names() == ["Sage", "Sage-20261120T030100Z", "Sage-20261120T030300Z"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])  # mark, hide, promote, back-date
def test_a_rollback_that_is_killed_is_done_or_not_and_never_undone(
    site: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch, at: int, moment: Moment
) -> None:
    first, second = site.build(1), site.build(2)
    for folder in (first, second):
        site.publish(folder, load_sites()[UC])
    with glance_proxy.proxies({UC: local_chameleon.endpoints[UC]["image"]}) as made:
        clouds = glance_proxy.lead_through(site.clouds_yaml, made, site.folder / "proxied.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        changes = 0

        def kill(call: Call, now: Moment) -> None:
            nonlocal changes
            changes += call.changes and now == "before"
            if call.changes and changes == at and now == moment:
                process.kill()
                process.wait()
                raise DropCall

        made[UC].hook = kill
        process = commands.start("sage-image", "rollback", site.name, "--site", UC)
        commands.finish(process, timeout=60)
        assert process.returncode == -signal.SIGKILL
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(site.clouds_yaml))
    # The night after: what had lost the name does not get it again.
    rolled_back = (at, moment) in ((3, "after"), (4, "before"), (4, "after"))
    assert outcomes(site.publish(second, load_sites()[UC])) == [Outcome.HELD if rolled_back else Outcome.UNCHANGED]
    assert current(site).recipe_digest == ("recipe-1" if rolled_back else "recipe-2")
    assert len(site.names()) == 2
    assert not any(image.hidden for image in site.ours())


@pytest.mark.parametrize("at", [1, 2, 3, 4])  # mark, hide, promote, back-date
def test_a_rollback_that_is_interrupted_leaves_one_current_image_and_nothing_half_done(
    site: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    stand(site, (1, 2), UC)
    with glance_proxy.proxies({UC: local_chameleon.endpoints[UC]["image"]}) as made:
        clouds = glance_proxy.lead_through(site.clouds_yaml, made, site.folder / "proxied.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        changes = 0

        def interrupt(call: Call, now: Moment) -> None:
            nonlocal changes
            changes += call.changes and now == "before"
            if call.changes and changes == at and now == "before":
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)

        made[UC].hook = interrupt
        process = commands.start("sage-image", "rollback", site.name, "--site", UC)
        ran = commands.finish(process, timeout=60)
    assert ran.code == 128 + signal.SIGINT
    assert "Traceback" not in ran.err
    assert current(site).recipe_digest in ("recipe-1", "recipe-2")
    assert len(set(site.names())) == len(site.names()) == 2
    assert not any(image.hidden for image in site.ours())


def test_two_rollbacks_at_once_leave_one_current_image(site: Bench) -> None:
    stand(site, (1, 2, 3), UC)
    both = [commands.start("sage-image", "rollback", site.name, "--site", UC) for _ in range(2)]
    assert [commands.finish(process, timeout=120).code for process in both] == [0, 0]
    # Those that saw the same image current asked for the same.
    assert current(site).recipe_digest in ("recipe-1", "recipe-2")
    assert len(set(site.names())) == len(site.names()) == 3
    assert not any(image.hidden for image in site.ours())


def test_without_a_name_a_rollback_is_about_the_only_one(site: Bench) -> None:
    stand(site, (1, 2), UC)
    assert report("rollback", "--site", UC)[UC]["outcome"] == "changed"
    other = replace(site, name=f"{site.name}-other", folder=site.folder / "other")
    other.folder.mkdir()
    try:
        stand(other, (1,), UC)
        ran = sage_image("rollback", "--site", UC, code=2)
        assert f"sage-image rollback {site.name} | {other.name}" in ran.err
    finally:
        for image in other.ours():
            catalog.delete(site.connections[UC], image.id)


# promote


def test_a_previous_image_is_promoted_by_name_or_id(site: Bench) -> None:
    stand(site, (1, 2))
    assert {row["outcome"] for row in report("promote", dated(site, 1), "--dry-run").values()} == {"would-change"}
    assert current(site).recipe_digest == "recipe-2"
    assert {row["outcome"] for row in report("promote", dated(site, 1)).values()} == {"changed"}
    assert [current(site, name).recipe_digest for name in NAMES] == ["recipe-1"] * 3
    second = next(image for image in site.ours() if image.recipe_digest == "recipe-2")
    assert second.withdrawn
    # An id stands at one site: the others are none of its business.
    done = report("promote", second.id)
    assert list(done) == [UC]
    assert [current(site, name).recipe_digest for name in NAMES] == ["recipe-2", "recipe-1", "recipe-1"]
    assert not current(site).withdrawn
    assert report("promote", second.id)[UC]["outcome"] == "unchanged"
    assert report("promote", site.name)[UC]["outcome"] == "unchanged"


def test_a_candidate_is_promoted_with_its_visibility(site: Bench) -> None:
    stand(site, (1, 2), UC)
    candidate = next(image for image in site.ours() if image.recipe_digest == "recipe-1")
    catalog.change(
        site.connections[UC],
        candidate.id,
        Change(
            name="sage-staging-x",
            hidden=True,
            visibility="private",
            properties={"sage_state": "candidate", "sage_publisher": dead_publisher()},
        ),
    )
    told = report("promote", candidate.id, "--visibility", "public", "--visibility", "community", "--dry-run")
    assert told[UC]["steps"][0] == f"set the visibility of {candidate.id} to public or else community"
    done = report("promote", candidate.id, "--visibility", "public", "--visibility", "community")
    assert done[UC]["outcome"] == "changed"
    assert (current(site).id, current(site).visibility) == (candidate.id, "community")


def test_an_image_whose_digest_is_not_the_checked_one_is_not_promoted(site: Bench) -> None:
    stand(site, (1, 2), UC)
    old = next(image for image in site.ours() if image.name == dated(site, 1))
    catalog.change(site.connections[UC], old.id, Change(properties={"sage_sha512": "00"}))
    assert "not the one that was checked" in sage_image("promote", old.id, "--site", UC, code=2).err
    assert current(site).recipe_digest == "recipe-2"


def test_words_that_mean_no_image_are_answered(site: Bench, foreign: Any) -> None:
    stand(site, (1, 2), UC)
    wrong = f"{site.name}-20261120T030108Z"
    assert f"did you mean {dated(site, 1)!r}" in sage_image("promote", wrong, "--site", UC, code=2).err
    assert "sage-image adopt" in sage_image("promote", foreign.name, "--site", UC, code=2).err
    assert "sage-image adopt" in sage_image("pause", foreign.id, code=2).err
    for image in site.ours():
        catalog.change(site.connections[UC], image.id, Change(name=dated(site, 1)))
    ran = sage_image("pause", dated(site, 1), "--site", UC, code=2)
    assert "2 images have the name" in ran.err
    assert all(image.id in ran.err for image in site.ours())
    for command in ("promote", "rollback", "prune", "pause", "unpause", "adopt", "share"):
        assert "there is no" in (ran := sage_image(command, "nonesuch", code=2)).err or "no image" in ran.err


def test_another_projects_image_is_never_touched(site: Bench) -> None:
    theirs = cloud.connect(replace(load_sites()[UC], cloud="chi_uc_2"))
    stand(site, (1,), UC)
    made = theirs.image.create_image(
        f"{site.name}-theirs", data=b"x", disk_format="raw", container_format="bare", visibility="community"
    )
    try:
        before = theirs.image.get_image(made.id).to_dict()
        for command in ("promote", "pause", "adopt", "share"):
            assert "another project's" in sage_image(command, made.id, "--site", UC, code=2).err
        assert theirs.image.get_image(made.id).to_dict() == before
    finally:
        theirs.image.delete_image(made.id)


# prune


def test_pruning_keeps_the_newest_the_protected_and_the_paused(site: Bench) -> None:
    stand(site, (1, 2, 3, 4, 5), UC)
    stand(site, (6,), UC)
    by_name = {image.name: image.id for image in site.ours()}
    site.connections[UC].image.update_image(by_name[dated(site, 1)], is_protected=True)
    sage_image("pause", dated(site, 2), "--site", UC)
    before = site.ours()
    told = report("prune", site.name, "--keep", "2", "--site", UC, "--dry-run")
    assert site.ours() == before
    gone = [f"- {dated(site, number)}  {by_name[dated(site, number)]}  previous" for number in (3, 4)]
    assert told[UC]["difference"] == gone
    assert [("protected" in text, "paused" in text) for text in told[UC]["warnings"]] == [(True, False), (False, True)]
    assert report("prune", site.name, "--keep", "2", "--older-than", "36500", "--site", UC)[UC]["steps"] == []
    assert report("prune", site.name, "--keep", "2", "--site", UC)[UC]["difference"] == gone
    dates = [name.removeprefix("Sage-20261120T03") for name in site.names()]
    assert dates == ["Sage", "0100Z", "0200Z", "0500Z"]
    assert report("prune", site.name, "--keep", "2", "--site", UC)[UC]["outcome"] == "unchanged"


def promote_by_hand(bench: Bench, image_id: str) -> None:  # noqa: F811
    """What another run does: at every moment one image has the name."""
    connection, moment = bench.connections[UC], rotation.timestamp(datetime.now(timezone.utc))
    old = [image for image in bench.ours() if image.name == bench.name]
    for image in old:
        catalog.change(connection, image.id, Change(hidden=True))
    properties = {"sage_state": "current", "sage_promoted_at": moment}
    catalog.change(connection, image_id, Change(name=bench.name, hidden=False, properties=properties))
    for image in old:
        properties = {"sage_state": "previous"}
        name = rotation.dated_name(bench.name, image.built_at)
        catalog.change(connection, image.id, Change(name=name, hidden=False, properties=properties))


@pytest.mark.parametrize("state", ["candidate", "previous"])
def test_what_another_run_promotes_while_a_pruning_waits_for_it_stays(
    site: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    stand(site, (1, 2, 3), UC)
    image = next(image for image in site.ours() if image.recipe_digest == "recipe-1")
    if state == "candidate":
        properties = {"sage_state": "candidate", "sage_publisher": dead_publisher()}
        catalog.change(
            site.connections[UC], image.id, Change(name="sage-staging-x", hidden=True, properties=properties)
        )
    listed = threading.Event()
    with glance_proxy.proxies({UC: local_chameleon.endpoints[UC]["image"]}) as made:
        clouds = glance_proxy.lead_through(site.clouds_yaml, made, site.folder / "proxied.yaml")
        made[UC].hook = lambda call, now: listed.set() if now == "after" else None
        with journal.opened(journal.default_folder(), load_sites()[UC], site.name):
            monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
            process = commands.start("sage-image", "prune", site.name, "--keep", "1", "--site", UC)
            assert listed.wait(60)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
            promote_by_hand(site, image.id)
        ran = commands.finish(process, timeout=60)
    assert current(site).id == image.id
    assert ran.code == 0, ran.err
    assert site.names() == ["Sage"]


def test_an_image_that_is_promoted_just_when_it_is_retired_keeps_the_name(
    site: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(site, (1, 2), UC)
    old = next(image for image in site.ours() if image.recipe_digest == "recipe-1")
    with glance_proxy.proxies({UC: local_chameleon.endpoints[UC]["image"]}) as made:
        clouds = glance_proxy.lead_through(site.clouds_yaml, made, site.folder / "proxied.yaml")

        def promote(call: Call, now: Moment) -> None:
            if call.method == "PATCH" and call.path.endswith(old.id) and now == "before":
                made[UC].hook = None
                promote_by_hand(site, old.id)

        made[UC].hook = promote
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        ran = sage_image("prune", site.name, "--keep", "1", "--site", UC, code=1)
    assert "another run has changed" in ran.err
    assert current(site).id == old.id
    assert len(site.names()) == 2


def test_pruning_deletes_what_is_older_than_asked(site: Bench) -> None:
    stand(site, (1, 2, 3), UC)
    old = next(image for image in site.ours() if image.name == dated(site, 1))
    catalog.change(site.connections[UC], old.id, Change(properties={"sage_built_at": "2020-01-01T00:00:00Z"}))
    done = report("prune", site.name, "--keep", "1", "--older-than", "1000", "--site", UC)
    assert [line.split()[2] for line in done[UC]["difference"]] == [old.id]
    assert site.names() == ["Sage", "Sage-20261120T030200Z"]


def test_without_a_name_all_are_pruned_each_for_itself(site: Bench) -> None:
    other = replace(site, name=f"{site.name}-other", folder=site.folder / "other")
    other.folder.mkdir()
    try:
        for each in (site, other):
            stand(each, (1, 2, 3), UC)
            catalog.change(site.connections[UC], current(each).id, Change(hidden=True))
        done = report("prune", "--keep", "2", "--site", UC)
        gone = [line for line in done[UC]["difference"] if dated(site, 1) in line or dated(other, 1) in line]
        assert len(gone) == 2
        assert site.names() == other.names() == ["Sage", "Sage-20261120T030200Z"]
    finally:
        for image in other.ours():
            catalog.delete(site.connections[UC], image.id)


# pause and unpause


def test_a_paused_image_is_neither_replaced_nor_rolled_back_nor_deleted(site: Bench) -> None:
    stand(site, (1, 2))
    assert report("pause", site.name, "--site", UC, "--dry-run")[UC]["outcome"] == "would-change"
    assert not current(site).paused
    assert report("pause", site.name, "--site", UC)[UC]["outcome"] == "changed"
    assert report("pause", site.name, "--site", UC)[UC]["outcome"] == "unchanged"
    made = site.publish(site.build(3), keep=9)
    assert outcomes(made) == [Outcome.HELD, Outcome.PUBLISHED, Outcome.PUBLISHED]
    assert "is paused" in made.sites[0].warnings[-1]
    done = report("rollback", site.name, code=3)
    assert "is paused" in done[UC]["problem"]["message"]
    assert [current(site, name).recipe_digest for name in NAMES] == ["recipe-2"] * 3
    assert report("unpause", site.name, "--site", UC)[UC]["outcome"] == "changed"
    assert report("unpause", site.name, "--site", UC)[UC]["outcome"] == "unchanged"
    assert report("rollback", site.name, "--site", UC)[UC]["outcome"] == "changed"


def test_a_paused_site_takes_no_new_image_of_any_name(site: Bench) -> None:
    stand(site, (1,), UC)
    assert report("pause", UC)[UC]["outcome"] == "changed"
    assert report("pause", UC)[UC]["outcome"] == "unchanged"
    other = replace(site, name=f"{site.name}-other", folder=site.folder / "other")
    other.folder.mkdir()
    folder = other.build(1)
    try:
        for made in (site.publish(site.build(2), load_sites()[UC]), other.publish(folder, load_sites()[UC])):
            assert outcomes(made) == [Outcome.HELD]
            assert f"sage-image unpause {UC}" in made.sites[0].warnings[-1]
        assert other.ours() == []
        assert report("unpause", UC)[UC]["outcome"] == "changed"
        assert outcomes(other.publish(folder, load_sites()[UC])) == [Outcome.PUBLISHED]
    finally:
        for image in other.ours():
            catalog.delete(site.connections[UC], image.id)
    assert "at once" in sage_image("pause", UC, "--site", UC, code=2).err


def test_a_site_without_a_current_image_can_not_be_paused(site: Bench) -> None:
    assert "no current image of ours" in sage_image("pause", UC, code=2).err


# adopt


def test_an_adopted_image_becomes_a_previous_one_and_can_be_promoted(site: Bench, foreign: Any) -> None:
    stand(site, (1,), UC)
    before = site.connections[UC].image.get_image(foreign.id).to_dict()
    told = report("adopt", foreign.name, "--as", site.name, "--site", UC, "--dry-run")
    name = f"{site.name}-20260102T030405Z"
    assert told[UC]["difference"] == [
        f"- {foreign.name}  {foreign.id}  not ours",
        f"+ {name}  {foreign.id}  previous",
    ]
    assert site.connections[UC].image.get_image(foreign.id).to_dict() == before
    assert list(report("adopt", foreign.id, "--as", site.name)) == [UC]
    assert report("adopt", foreign.id, "--as", site.name)[UC]["outcome"] == "unchanged"
    assert site.names() == ["Sage", "Sage-20260102T030405Z"]
    sage_image("promote", name, "--site", UC)
    assert current(site).id == foreign.id
    # It goes the way of all others.
    assert outcomes(site.publish(site.build(2), load_sites()[UC], keep=1)) == [Outcome.PUBLISHED]
    assert "Sage-20260102T030405Z" not in site.names()


def test_an_image_that_has_the_public_name_is_adopted_as_the_current_one(site: Bench, foreign: Any) -> None:
    catalog.change(site.connections[UC], foreign.id, Change(name=site.name))
    build = site.build(1)
    assert outcomes(site.publish(build, load_sites()[UC])) == [Outcome.FAILED]
    sage_image("adopt", site.name, "--site", UC)
    assert current(site).id == foreign.id
    assert outcomes(site.publish(build, load_sites()[UC])) == [Outcome.PUBLISHED]
    assert site.names() == ["Sage", "Sage-20260102T030405Z"]


def test_a_second_image_of_the_name_and_chameleons_own_are_not_adopted(site: Bench, foreign: Any) -> None:
    stand(site, (1,), UC)
    connection = site.connections[UC]
    catalog.change(connection, foreign.id, Change(name=site.name))
    assert "there would be two" in sage_image("adopt", foreign.id, "--site", UC, code=2).err
    catalog.change(connection, foreign.id, Change(name="CC-Ubuntu", properties={"chameleon-supported": "true"}))
    assert "supported by Chameleon" in sage_image("adopt", foreign.id, "--site", UC, code=2).err
    assert connection.image.get_image(foreign.id).tags == []


# share


def test_an_image_is_shared_with_projects(site: Bench) -> None:
    project = cloud.connect(replace(load_sites()[UC], cloud="chi_uc_2")).current_project_id or ""
    site.publish(site.build(1), load_sites()[UC], visibility=(catalog.Visibility.PRIVATE,))
    image = current(site)
    assert report("share", site.name, "--project", project, "--site", UC, "--dry-run")[UC]["difference"] == [
        f"- {site.name}  {image.id}  private",
        f"+ {site.name}  {image.id}  shared",
        f"+ {site.name}  {image.id}  member {project}",
    ]
    assert current(site).visibility == "private"
    done = report("share", site.name, "--project", project, "--site", UC)
    assert done[UC]["members"] == [{"project": project, "status": "pending"}]
    assert current(site).visibility == "shared"
    assert report("share", site.name, "--project", project, "--site", UC)[UC]["outcome"] == "unchanged"
    assert f"shared with {project} (pending)" in sage_image("share", site.name, "--site", UC).out
    assert report("share", site.name, "--remove", project, "--site", UC)[UC]["members"] == []
    again = report("share", site.name, "--remove", project, "--site", UC)
    assert again[UC]["outcome"] == "unchanged"
    assert "is not shared with" in again[UC]["warnings"][0]


def test_a_night_without_a_change_takes_no_share_away(site: Bench) -> None:
    project = cloud.connect(replace(load_sites()[UC], cloud="chi_uc_2")).current_project_id or ""
    folder, private = site.build(1), (catalog.Visibility.PRIVATE,)
    site.publish(folder, load_sites()[UC], visibility=private)
    report("share", site.name, "--project", project, "--site", UC)
    assert outcomes(site.publish(folder, load_sites()[UC], visibility=private)) == [Outcome.UNCHANGED]
    assert current(site).visibility == "shared"
    assert [member.project for member in catalog.members(site.connections[UC], current(site).id)] == [project]


def test_what_everybody_sees_is_not_shared(site: Bench) -> None:
    stand(site, (1,), UC)
    assert "every project may use it already" in sage_image("share", site.name, "--project", "x", code=2).err


# list


def test_the_list_marks_drift(site: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stand(site, (1, 2))
    stand(site, (3,), UC)
    stand(site, (4,), "KVM@TACC")
    sage_image("rollback", site.name, "--site", "KVM@TACC")
    sage_image("pause", site.name, "--site", "CHI@TACC")
    left = site.connections[UC]
    catalog.create(
        left,
        "11111111-2222-4333-8444-555555555555",
        name="sage-staging-left",
        disk_format="raw",
        min_disk=1,
        properties={
            "sage_state": "staging",
            "sage_image_name": site.name,
            "sage_publisher": dead_publisher(),
        },
    )
    other = next(image for image in site.ours("CHI@TACC") if image.name == dated(site, 1))
    catalog.change(site.connections["CHI@TACC"], other.id, Change(properties={"sage_sha512": "00"}))
    found = {row["site"]: row for row in json.loads(sage_image("list", "--json").out)}
    drifts = {name: [mark["drift"] for mark in found[name]["drift"]] for name in NAMES}
    assert drifts == {
        UC: ["left-over"],
        "CHI@TACC": ["paused", "behind", "differs"],
        "KVM@TACC": ["withdrawn", "behind"],
    }
    text = sage_image("list").out
    behind = f"BEHIND: {site.name} is behind: built 2026-11-20T03:02:00Z, at CHI@UC 2026-11-20T03:03:00Z"
    assert f"{behind} (CHI@TACC, KVM@TACC)" in text
    take_down(site, UC, monkeypatch)
    rest = {row["site"]: row for row in json.loads(sage_image("list", "--json", code=3).out)}
    assert rest[UC]["problem"]
    assert [mark["drift"] for mark in rest["KVM@TACC"]["drift"]] == ["withdrawn"]


def dead_publisher() -> str:
    from image_builder import publisher

    machine, _, start = publisher.identity().rsplit(":", 2)
    return f"{machine}:4194305:{start}"


def test_a_swap_left_half_done_is_marked(site: Bench) -> None:
    stand(site, (1, 2), UC)
    image = current(site)
    catalog.change(site.connections[UC], image.id, Change(hidden=True))
    (row,) = json.loads(sage_image("list", "--site", UC, "--json").out)
    assert [(mark["drift"], mark["image_id"]) for mark in row["drift"]] == [("hidden-holder", image.id)]
    assert "HIDDEN-HOLDER" in sage_image("list", "--site", UC).out


def test_a_manifest_is_of_the_build_that_stands(site: Bench, tmp_path: Path) -> None:
    folder = site.build(1)
    made, _ = manifest.read(folder)
    site.publish(folder, load_sites()[UC])
    (row,) = json.loads(sage_image("list", "--site", UC, "--json").out)
    assert row["images"][0]["properties"]["sage_build_id"] == made.build_id
    assert row["drift"] == []
