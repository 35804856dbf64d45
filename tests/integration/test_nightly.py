# SPDX-License-Identifier: Apache-2.0
"""Nights at three real Glances: what changed is published, what did not costs nothing, all of it is told."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import html5lib
import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from groundwork import process
from image_builder import catalog
from local_chameleon.cloud import State
from tests.integration import commands
from tests.integration.commands import Ran
from tests.integration.nights import House, image_name

PROJECT = Path(__file__).parents[2]
NAMES = ("CHI@UC", "CHI@TACC", "KVM@TACC")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's indexes are fetched and asked once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def house(local_chameleon: State, tmp_path: Path, cache: Path) -> Iterator[House]:
    """Two variants, ``one`` and ``two``, with builds that no site has yet."""
    made = House(tmp_path)
    for name in ("one", "two"):
        made.variant(name)
        made.build(name, cache)
    made.write(cache, "one", "two")
    yield made
    for site, images in ours(local_chameleon).items():
        for image in images:
            catalog.delete(connect(local_chameleon, site), image.id)


def connect(state: State, site: str) -> Any:
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(state.clouds_yaml)
    return cloud.connect(load_sites()[site])


def ours(state: State) -> dict[str, list[Any]]:
    found = {site: catalog.list_ours(connect(state, site)) for site in NAMES}
    return {
        site: [image for image in images if image.image_name.startswith(image_name(""))]
        for site, images in found.items()
    }


def night(house: House, state: State, *words: str, clouds: Path | None = None) -> Ran:
    env = {"OS_CLIENT_CONFIG_FILE": str(clouds or state.clouds_yaml)}
    return commands.run("sage-image", "nightly", "--config", house.config, *words, env=env, timeout=300)


def page(house: House) -> str:
    text = (house.state / "index.html").read_text()
    tree: Any = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    return " ".join(" ".join(tree.find("body").itertext()).split())


def test_a_night_publishes_what_is_new_and_the_next_one_costs_nothing(
    house: House, local_chameleon: State, cache: Path
) -> None:
    hook = house.top / "told.json"
    (house.top / "hooks.yaml").write_text(f"hooks: [{{when: changed, command: [sh, -c, 'cat > {hook}']}}]\n")
    more = f"hooks: {house.top}/hooks.yaml\nmetrics: {house.top}/sage.prom\nsummary: {house.top}/summary.md\n"
    house.write(cache, "one", "two", more=more)
    first = night(house, local_chameleon, "--json")
    assert first.code == 0, first.err
    report = json.loads(first.out)
    schema = json.loads((PROJECT / "image_builder/report.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(report)
    assert json.loads(hook.read_text()) == report
    rows = [row for publication in report["publications"] for row in publication["sites"]]
    assert [row["canary"]["verdict"] for row in rows] == ["pass"] * 6, "at night a canary is asked for by default"
    for site, images in ours(local_chameleon).items():
        assert sorted(image.name for image in images) == [image_name("one"), image_name("two")], site
    assert f"{image_name('one')} site age built size ✓ CHI@UC" in page(house)
    assert f"| {image_name('two')} |" in (house.top / "summary.md").read_text()
    (log,) = (house.state / "logs").iterdir()
    assert "published" in log.read_text()
    hook.unlink()

    again = night(house, local_chameleon, "--json")
    assert again.code == 0, again.err
    report = json.loads(again.out)
    rows = [row for publication in report["publications"] for row in publication["sites"]]
    assert [row["outcome"] for row in rows] == ["unchanged"] * 6
    assert sum(row["uploaded"] for row in rows) == 0
    assert not hook.exists(), "a hook for changes is not called"
    assert "nothing has changed" in page(house)
    assert len(list((house.state / "runs").iterdir())) == 2
    samples = [
        sample
        for family in text_string_to_metric_families((house.top / "sage.prom").read_text())
        for sample in family.samples
        if sample.labels.get("image") == image_name("one")
    ]
    assert {sample.labels["site"] for sample in samples if sample.name == "sage_image_current"} == set(NAMES)
    assert all(sample.value == 1 for sample in samples if sample.name == "sage_image_current")


def test_a_site_that_is_down_is_told_everywhere_and_stops_no_other(
    house: House, local_chameleon: State, cache: Path
) -> None:
    document = yaml.safe_load(Path(local_chameleon.clouds_yaml).read_text())
    document["clouds"]["chi_tacc"]["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    (house.top / "clouds.yaml").write_text(yaml.safe_dump(document))
    done = night(house, local_chameleon, clouds=house.top / "clouds.yaml")
    assert done.code == 3
    assert "connection refused" in done.err
    assert {site: len(images) for site, images in ours(local_chameleon).items()} == {
        "CHI@UC": 2,
        "CHI@TACC": 0,
        "KVM@TACC": 2,
    }
    assert "2 failures" in page(house)
    assert "CHI@TACC does not answer" in page(house)
    (record,) = (house.state / "runs").iterdir()
    assert json.loads(record.read_text())["exit_code"] == 3
    mended = night(house, local_chameleon)
    assert mended.code == 0, mended.err
    assert {len(images) for images in ours(local_chameleon).values()} == {2}


def test_what_the_canary_fails_is_not_promoted(house: House, local_chameleon: State, cache: Path) -> None:
    house.write(cache, "one", canary="false")
    done = night(house, local_chameleon)
    assert done.code == 1, done.err
    assert {image.name == image_name("one") for images in ours(local_chameleon).values() for image in images} == {False}
    assert "canary" in page(house)


def test_a_canary_that_comes_to_no_end_can_be_left_out(house: House, local_chameleon: State, cache: Path) -> None:
    house.write(cache, "one", canary='sh -c "exit 75"')
    assert night(house, local_chameleon).code == 3
    assert "current" not in {image.state for images in ours(local_chameleon).values() for image in images}
    unasked = night(house, local_chameleon, "--no-canary")
    assert unasked.code == 0, unasked.err
    current = [image for images in ours(local_chameleon).values() for image in images if image.state == "current"]
    assert [image.name for image in current] == [image_name("one")] * 3


def test_no_site_at_all_is_told_too(house: House, local_chameleon: State) -> None:
    document = yaml.safe_load(Path(local_chameleon.clouds_yaml).read_text())
    for entry in document["clouds"].values():
        entry["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    (house.top / "clouds.yaml").write_text(yaml.safe_dump(document))
    done = night(house, local_chameleon, clouds=house.top / "clouds.yaml")
    assert done.code == 1
    assert "The whole night no site is left to publish to" in page(house)


def test_an_image_that_can_not_be_made_stops_no_other(house: House, local_chameleon: State, cache: Path) -> None:
    house.variant("three", "packages: [no-such-package-anywhere]\n")
    house.write(cache, "three", "one")
    done = night(house, local_chameleon)
    assert done.code == 3
    assert "the archive has no package 'no-such-package-anywhere'" in done.err
    assert f"{image_name('three')} the archive has no package" in page(house)
    for images in ours(local_chameleon).values():
        assert [image.name for image in images] == [image_name("one")]


def test_a_second_night_says_who_is_at_work_and_changes_nothing(
    house: House, local_chameleon: State, cache: Path
) -> None:
    (house.top / "hooks.yaml").write_text("hooks: [{command: [sleep, '5']}]\n")
    house.write(cache, "one", more=f"hooks: {house.top}/hooks.yaml\n")
    first = commands.start(
        "sage-image",
        "nightly",
        "--config",
        house.config,
        env={"OS_CLIENT_CONFIG_FILE": str(local_chameleon.clouds_yaml)},
    )
    for _ in process.poll_until(60):
        if (house.state / "nightly.lock").exists() and (house.state / "nightly.lock").read_text():
            break
    second = night(house, local_chameleon)
    assert second.code == 75
    assert f"another night is under way (pid {first.pid}, since 20" in second.err
    assert commands.finish(first, timeout=120).code == 0
    assert len(list((house.state / "runs").iterdir())) == 1
    assert len(list((house.state / "logs").iterdir())) == 1


def test_an_interrupted_night_leaves_nothing_but_its_record(house: House, local_chameleon: State, cache: Path) -> None:
    hook = house.top / "told"
    (house.top / "hooks.yaml").write_text(f"hooks: [{{command: [touch, {hook}]}}]\n")
    house.variant("large")
    house.build("large", cache, size=150 << 20)
    house.write(cache, "large", more=f"hooks: {house.top}/hooks.yaml\n")
    running = commands.start(
        "sage-image",
        "nightly",
        "--config",
        house.config,
        env={"OS_CLIENT_CONFIG_FILE": str(local_chameleon.clouds_yaml)},
    )
    for _ in process.poll_until(60):
        if any(image.status == "saving" for images in ours(local_chameleon).values() for image in images):
            break
    begin = time.monotonic()
    running.send_signal(signal.SIGINT)
    done = commands.finish(running, timeout=60)
    assert done.code == 130, done.err
    assert time.monotonic() - begin < 20
    assert not any(ours(local_chameleon).values())
    assert not hook.exists(), "who interrupts a night waits for its end"
    assert "interrupted" in page(house)
    (record,) = (house.state / "runs").iterdir()
    assert json.loads(record.read_text())["exit_code"] == 130


def test_a_rehearsal_tells_and_leaves_nothing(house: House, local_chameleon: State) -> None:
    done = night(house, local_chameleon, "--dry-run")
    assert done.code == 0, done.err
    assert done.out.count("upload qcow2-z") == 6
    assert not any(ours(local_chameleon).values())
    assert not house.state.exists()


def test_a_page_that_can_not_be_written_is_told_and_fails_nothing_else(house: House, local_chameleon: State) -> None:
    done = night(house, local_chameleon, "--page", "/proc/no/index.html")
    assert done.code == 4, "all is done, and not all is told"
    assert "the record of this night" in done.err
    assert {len(images) for images in ours(local_chameleon).values()} == {2}


def test_publishing_one_build_by_hand_is_told_too(house: House, local_chameleon: State) -> None:
    (folder,) = (house.top / "build" / image_name("one")).iterdir()
    (house.top / "hooks.yaml").write_text(f"hooks: [{{command: [sh, -c, 'cat > {house.top}/told.json']}}]\n")
    sites = [word for site in NAMES for word in ("--site", site)]
    words: list[str | Path] = [
        "--hooks",
        house.top / "hooks.yaml",
        "--metrics",
        house.top / "sage.prom",
        "--cache-dir",
        house.top,
    ]
    env = {"OS_CLIENT_CONFIG_FILE": str(local_chameleon.clouds_yaml)}
    done = commands.run("sage-image", "publish", folder, *sites, *words, env=env, timeout=300)
    assert done.code == 0, done.err
    report = json.loads((house.top / "told.json").read_text())
    jsonschema.Draft202012Validator(json.loads((PROJECT / "image_builder/report.schema.json").read_text())).validate(
        report
    )
    assert report["command"] == "sage-image publish"
    assert [row["outcome"] for row in report["publications"][0]["sites"]] == ["published"] * 3
    names = {family.name for family in text_string_to_metric_families((house.top / "sage.prom").read_text())}
    assert "sage_image_built_timestamp_seconds" in names
