# SPDX-License-Identifier: Apache-2.0
"""The proxy that the tests of rotation and publishing put between a publisher and a real Glance."""

import hashlib
import os
import resource
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import load_sites
from groundwork.errors import InputError
from image_builder import catalog
from image_builder.catalog import BadListing, Change
from image_builder.upload import Body, Feed, from_file
from tests.integration import glance_proxy
from tests.integration.glance_proxy import Answer, Call, Cut, DropCall, Flip, Lost, Moment, Proxy, Rewrite, Slow


def body(path: Path) -> Body:
    return Body(Feed(lambda: from_file(path), path.stat().st_size, "sha256"))


@dataclass(frozen=True)
class Led:
    """A connection that goes through a proxy."""

    proxy: Proxy
    connection: Any
    made: list[str]

    def create(self) -> str:
        image_id = str(uuid.uuid4())
        self.made.append(image_id)
        properties = {"sage_state": "staging", "sage_image_name": "proxied"}
        catalog.create(self.connection, image_id, name="proxied", disk_format="raw", min_disk=1, properties=properties)
        return image_id

    def upload(self, path: Path) -> str:
        image_id = self.create()
        catalog.upload(self.connection, image_id, body(path))
        return image_id


@pytest.fixture
def led(local_chameleon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Led]:
    endpoints = {"CHI@UC": local_chameleon.endpoints["CHI@UC"]["image"]}
    with glance_proxy.proxies(endpoints) as made:
        clouds_yaml = glance_proxy.lead_through(local_chameleon.clouds_yaml, made, tmp_path / "clouds.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds_yaml))
        found = Led(made["CHI@UC"], cloud.connect(load_sites()["CHI@UC"]), [])
        yield found
        found.proxy.reset()
        for image_id in found.made:
            catalog.delete(found.connection, image_id)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_001))
    return path


def test_every_call_passes_and_is_counted(led: Led, file: Path) -> None:
    image_id = led.upload(file)
    image = catalog.get(led.connection, image_id)
    assert image.os_hash_value == hashlib.sha512(file.read_bytes()).hexdigest()
    assert [image.id for image in catalog.list_ours(led.connection, "proxied")] == [image_id]
    assert led.connection.image.download_image(image_id).content == file.read_bytes()
    assert [call.method for call in led.proxy.calls[:3]] == ["POST", "PUT", "GET"]
    assert [call.number for call in led.proxy.calls] == list(range(1, len(led.proxy.calls) + 1))


def test_chunked_bodies_pass(led: Led, file: Path) -> None:
    image_id = led.create()
    with file.open("rb") as stream:  # a body without a length
        blocks = iter(lambda: stream.read(100_000), b"")
        led.connection.image.put(
            f"/images/{image_id}/file", data=blocks, headers={"Content-Type": "application/octet-stream"}
        )
    assert catalog.get(led.connection, image_id).size == 3_000_001


def test_bodies_are_not_held(led: Led, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(400 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    led.upload(large)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_hooks_are_called_before_at_half_and_after(led: Led, file: Path) -> None:
    told: list[tuple[int, str]] = []
    led.proxy.hook = lambda call, moment: told.append((call.number, moment))
    led.upload(file)
    assert told == [(1, "before"), (1, "half"), (1, "after"), (2, "before"), (2, "half"), (2, "after")]


@pytest.mark.parametrize(("moment", "arrives"), [("before", False), ("half", False), ("after", True)])
def test_a_hook_can_drop_a_call(led: Led, moment: Moment, arrives: bool) -> None:
    image_id = led.create()

    def drop(call: Call, now: Moment) -> None:
        if call.method == "PATCH" and now == moment:
            raise DropCall

    led.proxy.hook = drop
    with pytest.raises(SiteUnreachable):
        catalog.change(led.connection, image_id, Change(name="changed"))
    led.proxy.hook = None
    assert (catalog.get(led.connection, image_id).name == "changed") is arrives


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, InputError), (403, catalog.Refused), (409, SiteError), (413, SiteError), (500, SiteUnreachable)],
)
def test_answers_are_given_instead_of_glances(led: Led, status: int, kind: type[Exception]) -> None:
    image_id = led.create()
    led.proxy.inject(Answer(status, b"no"), "PATCH", times=9)
    with pytest.raises(kind):
        catalog.change(led.connection, image_id, Change(name="changed"))
    assert catalog.get(led.connection, image_id).name == "proxied"


def test_answers_have_headers_and_a_number_of_times(led: Led) -> None:
    image_id = led.create()
    led.proxy.inject(Answer(429, b"", {"Retry-After": "7"}), "GET", r"/images/[0-9a-f-]+$", skip=1)
    codes = []
    for _ in range(3):
        response = led.connection.image.get(f"/images/{image_id}")
        codes.append((response.status_code, response.headers.get("Retry-After")))
    assert codes == [(200, None), (429, "7"), (200, None)]


def test_an_upload_is_cut_at_half(led: Led, file: Path) -> None:
    image_id = led.create()
    led.proxy.inject(Cut(), "PUT")
    with pytest.raises(SiteUnreachable):
        catalog.upload(led.connection, image_id, body(file))
    assert catalog.get(led.connection, image_id).status != "active"


def test_a_lost_answer_is_of_a_call_that_was_done(led: Led) -> None:
    image_id = led.create()
    led.proxy.inject(Lost(), "PATCH", times=9)
    with pytest.raises(SiteUnreachable):
        catalog.change(led.connection, image_id, Change(name="changed"))
    assert catalog.get(led.connection, image_id).name == "changed"


def test_bits_are_flipped_on_the_way(led: Led, file: Path) -> None:
    led.proxy.inject(Flip(2_000_000), "PUT")
    image = catalog.get(led.connection, led.upload(file))
    assert image.size == file.stat().st_size
    assert image.os_hash_value != hashlib.sha512(file.read_bytes()).hexdigest()


def test_listings_are_made_wrong(led: Led) -> None:
    led.create()
    led.proxy.inject(glance_proxy.EMPTY_LISTING, "GET", r"/images\?", times=3)
    assert catalog.list_ours(led.connection, "proxied") == ()
    for fault in (glance_proxy.HTML, glance_proxy.TRUNCATED, Rewrite(lambda listing: [])):
        led.proxy.inject(fault, "GET", r"/images\?")
        with pytest.raises(BadListing):
            catalog.list_ours(led.connection, "proxied")
    led.proxy.inject(Slow(0.2), "GET", r"/images\?")
    assert len(catalog.list_ours(led.connection, "proxied")) == 1
