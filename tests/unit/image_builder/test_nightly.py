# SPDX-License-Identifier: Apache-2.0
"""What the file of a night may say; what is wrong with it is told with file, line and key.  Nights themselves are
integration tests."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import InputError
from image_builder import build, cli, manifest, nightly, pipeline, publish, settings
from image_builder.build import Places
from image_builder.pipeline import Order
from image_builder.publication import PublishReport


def values_of(folder: Path, text: str) -> dict[str, Any]:
    """The settings of a night with this file."""
    (folder / "nightly.yaml").write_text(text)
    given = Namespace(config=str(folder / "nightly.yaml"))
    return {**cli.read_values(settings.NIGHTLY, given, nightly.SCHEMA), **nightly._EVERY_NIGHT}


def read(folder: Path, text: str) -> list[Order]:
    """The orders of a night with this file."""
    return nightly.read_orders(values_of(folder, text))


def made(orders: list[Order]) -> list[tuple[str, tuple[str, ...]]]:
    return [(order.recipe.image_name, tuple(site.name for site in order.sites)) for order in orders]


def test_each_variant_for_each_release_and_architecture(tmp_path: Path) -> None:
    text = (
        "site: [CHI@UC, KVM@TACC]\n"
        "images:\n"
        "- {variant: [base, sage], release: [noble, bookworm]}\n"
        "- {variant: base, release: noble, arch: arm64, site: CHI@TACC}\n"
    )
    everywhere = ("CHI@UC", "KVM@TACC")
    assert made(read(tmp_path, text)) == [
        ("Sage-Ubuntu24.04-Base", everywhere),
        ("Sage-Debian12-Base", everywhere),
        ("Sage-Ubuntu24.04", everywhere),
        ("Sage-Debian12", everywhere),
        ("Sage-Ubuntu24.04-Base-ARM64", ("CHI@TACC",)),
    ]


def test_without_sites_a_night_builds_alone(tmp_path: Path) -> None:
    assert made(read(tmp_path, "images: [{variant: base}]\n")) == [("Sage-Ubuntu24.04-Base", ())]


def test_an_image_without_sites_is_built_beside_one_that_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(tmp_path, "images: [{variant: base}, {variant: sage, site: CHI@UC}]\n")
    images = [pipeline._Image(order, order.recipe) for order in nightly.read_orders(values)]
    report = PublishReport("", "", "", ())
    monkeypatch.setattr(publish, "inventory", lambda sites, connections: ())
    monkeypatch.setattr(publish, "standing_report", lambda *args: report)
    pipeline._pass_over_standing(images, values, Places(tmp_path, tmp_path), {})
    assert [image.is_open for image in images] == [True, False], "the other stands at its site"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("site: CHI@UC\n", "the key 'images' is missing", None),
        ("images: []\n", "nightly.yaml:1: images", None),
        ("images:\n- {release: noble}\n", "nightly.yaml:2: images[0]: the key 'variant' is missing", None),
        ("images:\n- variant: base\n  releases: x\n", "nightly.yaml:3: images[0].releases: unknown key", "'release'"),
        ("images:\n- variant: sgae\n", "nightly.yaml:2: images[0]: unknown variant 'sgae'", "did you mean 'sage'?"),
        ("images:\n- variant: sage\n  release: nobel\n", "images[0]: unknown release 'nobel'", "did you mean 'noble'?"),
        ("images:\n- variant: sage\n  arch: arm46\n", "images[0]: unknown architecture 'arm46'", "'arm64'"),
        (
            "images:\n- variant: sage\n- variant: base\n  site: [CHI@UX]\n",
            "nightly.yaml:4: images[1].site: unknown site 'CHI@UX'",
            "did you mean 'CHI@UC'?",
        ),
        ("images:\n- variant: [base, sage]\n- variant: sage\n", "nightly.yaml:3: images[1]: Sage-", None),
        ("kepe: 3\nimages: [{variant: base}]\n", "nightly.yaml:1: kepe: unknown key", "did you mean 'keep'?"),
        ("keep: none\nimages: [{variant: base}]\n", "nightly.yaml:1: keep: expected a whole number", None),
        ("keep-logs: 0\nimages: [{variant: base}]\n", "nightly.yaml:1: keep-logs: expected a whole number", None),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(
    tmp_path: Path, text: str, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert hint is None or (caught.value.hint is not None and hint in caught.value.hint)


def test_a_night_needs_a_file() -> None:
    values = cli.read_values(settings.NIGHTLY, Namespace(), nightly.SCHEMA)
    with pytest.raises(InputError, match="needs a file") as caught:
        nightly.read_orders(values)
    assert caught.value.hint == "--config nightly.yaml"


def test_images_are_no_key_of_another_commands_file(tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text("images: [{variant: base}]\n")
    with pytest.raises(InputError, match="images: unknown key"):
        cli.read_values(settings.PUBLISH, Namespace(config=str(tmp_path / "nightly.yaml")))


def test_a_night_has_every_setting_of_create_image_that_it_does_not_set_itself() -> None:
    theirs = {setting.name for setting in settings.CREATE_IMAGE}
    ours = {setting.name for setting in settings.NIGHTLY}
    assert theirs - ours == set(settings._NOT_NIGHTLY)
    assert "no-canary" in ours, "a night's canary can be left out"
    assert nightly._EVERY_NIGHT["canary"]


def test_old_builds_go_and_what_is_in_the_making_stays(tmp_path: Path) -> None:
    for name in ("20261118T031500Z-a", "20261119T031500Z-b", "20261120T031500Z-c", ".20261121T031500Z-d.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / manifest.MANIFEST).write_text("{}")
    (tmp_path / "20260101T000000Z-mine").mkdir()  # no build: it has no manifest
    build.drop_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".20261121T031500Z-d.partial",
        "20260101T000000Z-mine",
        "20261119T031500Z-b",
        "20261120T031500Z-c",
    ]
    build.drop_old(tmp_path / "nothing", 2)


def test_a_second_night_is_told_who_is_at_work(tmp_path: Path) -> None:
    with nightly._alone(tmp_path), pytest.raises(nightly.UnderWay) as caught, nightly._alone(tmp_path):
        pass
    assert caught.value.exit_code == 75
    assert "another night is under way (pid " in str(caught.value)
    with nightly._alone(tmp_path):
        pass


def test_one_log_a_night_and_the_newest_stay(tmp_path: Path) -> None:
    from groundwork import console

    for day in (17, 18, 19):
        (tmp_path / f"202601{day}T031500Z.log").write_text("old\n")
    with pytest.raises(ZeroDivisionError), nightly._logged(tmp_path, 2):
        console.say("at work")
        console.warn("something", hint="look at it")
        console.table(["site", "outcome"], [["CHI@UC", "published"]])
        _ = 1 // 0
    console.say("not of this night")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[0] == "20260119T031500Z.log"
    lines = (tmp_path / names[1]).read_text().splitlines()
    assert [line.split("Z ", 1)[1].split() for line in lines[:5]] == [
        ["at", "work"],
        ["warning:", "something"],
        ["hint:", "look", "at", "it"],
        ["site", "outcome"],
        ["CHI@UC", "published"],
    ]
    assert "the night ended in an error" in lines[5]
    assert lines[-1].startswith("ZeroDivisionError")
