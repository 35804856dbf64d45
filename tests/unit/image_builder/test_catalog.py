# SPDX-License-Identifier: Apache-2.0
"""What is said to Glance, and what is made of its answers; Glance itself is in tests/integration."""

import json
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as auth_errors

from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.errors import InputError, SageError
from image_builder import catalog
from image_builder.catalog import BadListing, Change, Gone, Refused, Taken


def row(number: int, **keys: Any) -> dict[str, Any]:
    return {
        "id": f"id-{number}",
        "name": f"image {number}",
        "status": "active",
        "os_hidden": False,
        "protected": False,
        "visibility": "private",
        "owner": "us",
        "size": 5,
        "created_at": "2026-11-20T12:00:00Z",
        "updated_at": "2026-11-20T12:00:00Z",
        "disk_format": "raw",
        "os_hash_algo": "sha512",
        "os_hash_value": "00",
        "tags": ["sage-image"],
        "sage_state": "current",
        "sage_image_name": "Sage-X",
        **keys,
    }


class Glance:
    """Gives prepared answers, each once, the last one for ever; remembers what was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.image = self
        self.current_project_id = "us"
        self.config = SimpleNamespace(region_name="CHI@UC")

    def request(self, path: str, method: str, **arguments: Any) -> Any:
        self.asked.append((method, path, arguments))
        if "data" in arguments:
            for _ in arguments["data"]:
                pass
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        code, body, *more = answer
        text = body if isinstance(body, str) else json.dumps(body)
        return SimpleNamespace(
            status_code=code,
            ok=code < 400,
            text=text,
            content=text.encode(),
            reason="reason",
            headers=more[0] if more else {},
            json=lambda: json.loads(text),
        )


def connection(*answers: Any) -> Any:
    return Glance(*answers)


def page(*rows: dict[str, Any], following: str | None = None) -> tuple[int, dict[str, Any]]:
    return 200, {"images": list(rows), **({"next": following} if following else {})}


def test_listed_and_hidden_images_are_read_page_by_page() -> None:
    glance = connection(
        page(row(1), following="/v2/images?marker=id-1"),
        page(row(2)),
        page(row(3, os_hidden=True)),
        page(row(1), row(2)),
    )
    found = catalog.list_ours(glance)
    assert [(image.id, image.hidden) for image in found] == [("id-1", False), ("id-2", False), ("id-3", True)]
    assert glance.asked[1][1] == "/images?marker=id-1"


def test_an_image_that_is_shown_while_the_lists_are_read_does_not_slip_through() -> None:
    glance = connection(page(), page(), page(row(1)))
    assert [image.id for image in catalog.list_ours(glance)] == ["id-1"]


@pytest.mark.parametrize(
    "foreign",
    [row(2, owner="them"), row(2, tags=[]), {k: v for k, v in row(2).items() if k != "sage_state"}],
)
def test_what_is_not_ours_is_not_listed_even_if_the_site_ignores_the_query(foreign: dict[str, Any]) -> None:
    assert [image.id for image in catalog.list_ours(connection(page(row(1), foreign)))] == ["id-1"]


def test_another_name_is_not_listed_even_if_the_site_ignores_the_query() -> None:
    answer = page(row(1), row(2, sage_image_name="Sage-Y"))
    assert [image.id for image in catalog.list_ours(connection(answer), "Sage-X")] == ["id-1"]


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<html>we are being repaired</html>"),
        (200, []),
        (200, {"error": "no"}),
        (200, {"images": {"id": 1}}),
        (200, {"images": ["text"]}),
        (200, {"images": [{"id": "x"}]}),
        (200, {"images": [row(1, status=None)]}),
        page(row(1), following="/v2/images?marker=for-ever"),
    ],
)
def test_a_listing_that_is_none_is_not_believed(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_MOST_PAGES", 3)
    with pytest.raises(BadListing):
        catalog.list_ours(connection(answer))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((401, "no"), InputError),
        ((403, "<h1>403</h1> not authorized<br /></body>"), Refused),
        ((404, "no"), Gone),
        ((409, {"message": "in use"}), SiteError),
        ((413, "too large"), SiteError),
        ((415, "no qcow2"), SiteError),
        ((500, "no"), SiteUnreachable),
        ((503, ""), SiteUnreachable),
        (auth_errors.ConnectFailure("refused"), SiteUnreachable),
    ],
)
def test_refusals_are_told_apart(answer: Any, kind: type[Exception], slept: list[float]) -> None:
    with pytest.raises(kind):
        catalog.get(connection(answer), "x")


def busy(code: int, **headers: str) -> Any:
    return code, "not now", headers


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, none of which is waited."""
    found: list[float] = []
    monkeypatch.setattr("image_builder.catalog.time.sleep", found.append)
    return found


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_site_that_is_busy_is_asked_again(code: int, slept: list[float]) -> None:
    assert catalog.get(connection(busy(code), busy(code), (200, row(1))), "id-1").id == "id-1"
    assert 0.25 <= slept[0] <= 0.5 <= slept[1] <= 1.0


def test_a_site_that_stays_busy_has_failed(slept: list[float]) -> None:
    with pytest.raises(SiteUnreachable, match="asked too often"):
        catalog.get(connection(busy(429)), "id-1")
    assert len(slept) == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 415])
def test_what_will_not_pass_is_asked_once(code: int, slept: list[float]) -> None:
    glance = connection(busy(code))
    with pytest.raises(SageError):
        catalog.get(glance, "id-1")
    assert (len(glance.asked), slept) == (1, [])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        # by the site's own clock, which is years behind
        ({"Retry-After": "Fri, 01 Jan 2010 00:00:09 GMT", "Date": "Fri, 01 Jan 2010 00:00:00 GMT"}, 9.0),
        ({"Retry-After": "Fri, 01 Jan 2010 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
    ],
)
def test_a_site_says_when_to_come_back(headers: dict[str, str], seconds: float, slept: list[float]) -> None:
    catalog.get(connection((503, "", headers), (200, row(1))), "id-1")
    assert slept == [seconds] if seconds else slept[0] <= 0.5


def test_a_site_that_asks_for_an_hour_has_failed_and_is_not_waited_for(slept: list[float]) -> None:
    with pytest.raises(SiteUnreachable) as caught:
        catalog.get(connection((503, "", {"Retry-After": "3600"})), "id-1")
    assert caught.value.retry_after == 3600.0
    assert slept == []


def test_the_ways_of_import_are_those_that_the_site_tells() -> None:
    answer = (200, {"import-methods": {"type": "array", "value": ["glance-direct", "web-download"]}})
    assert catalog.import_methods(connection(answer)) == ("glance-direct", "web-download")
    assert catalog.import_methods(connection((404, ""))) == ()
    assert catalog.import_methods(connection((200, {"import-methods": "all"}))) == ()


def test_an_import_that_failed_says_why() -> None:
    assert catalog.import_failure(connection((200, row(1))), "id-1") is None
    assert catalog.import_failure(connection((200, row(1, os_glance_failed_import=""))), "id-1") is None
    failed = (200, row(1, os_glance_failed_import="local"))
    tasks = (200, {"tasks": [{"message": "first"}, {"message": "no such host"}]})
    assert catalog.import_failure(connection(failed, tasks), "id-1") == "no such host"
    assert catalog.import_failure(connection(failed, (404, "")), "id-1") == "it does not say why"


def test_a_change_is_one_request_that_touches_nothing_else() -> None:
    glance = connection((200, row(1)))
    catalog.change(glance, "id-1", Change(name="new", hidden=False, properties={"sage_state": "current"}))
    ((method, path, arguments),) = glance.asked
    assert (method, path) == ("PATCH", "/images/id-1")
    assert arguments["json"] == [
        {"op": "add", "path": "/sage_state", "value": "current"},
        {"op": "add", "path": "/name", "value": "new"},
        {"op": "add", "path": "/os_hidden", "value": False},
    ]


def test_a_new_image_is_private_hidden_and_marked() -> None:
    glance = connection((201, row(1)))
    catalog.create(glance, "id-1", name="tmp", disk_format="raw", min_disk=3, properties={"sage_state": "staging"})
    document = glance.asked[0][2]["json"]
    assert (document["visibility"], document["os_hidden"], document["tags"]) == ("private", True, ["sage-image"])
    assert document["id"] == "id-1"


def test_a_creation_that_was_sent_twice_made_one_image() -> None:
    glance = connection((409, "already exists"), (200, row(1, name="tmp")))
    assert catalog.create(glance, "id-1", name="tmp", disk_format="raw", min_disk=3, properties={}).id == "id-1"


@pytest.mark.parametrize(
    ("answer", "holder"),
    [((200, row(1)), "id-1"), ((200, row(1, name="tmp", owner="them")), "id-1"), ((404, ""), None)],
)
def test_an_id_that_is_or_was_anothers_is_taken(answer: Any, holder: str | None) -> None:
    with pytest.raises(Taken) as caught:
        catalog.create(
            connection((409, "already exists"), answer),
            "id-1",
            name="tmp",
            disk_format="raw",
            min_disk=3,
            properties={},
        )
    assert (caught.value.holder.id if caught.value.holder else None) == holder


def test_an_image_that_one_of_two_listings_lacks_is_asked_for_by_its_id() -> None:
    """Hidden just then, deleted just then, or left out by a bad listing: only the first and the last may be."""
    glance = connection(page(row(1), row(2)), page(), page(row(1)), (200, row(2, os_hidden=True)))
    assert [(image.id, image.hidden) for image in catalog.list_ours(glance)] == [("id-1", False), ("id-2", True)]
    glance = connection(page(row(1), row(2)), page(), page(row(1)), (404, ""))
    assert [image.id for image in catalog.list_ours(glance)] == ["id-1"]


@pytest.mark.parametrize(
    ("header", "time"),
    [
        ({"Date": "Sat, 21 Nov 2026 12:00:00 GMT"}, datetime(2026, 11, 21, 12, tzinfo=timezone.utc)),
        ({"Date": "soon"}, None),
        ({}, None),
    ],
)
def test_the_sites_clock_is_read_where_it_is_told(header: dict[str, str], time: datetime | None) -> None:
    assert catalog.site_time(connection((200, {"images": []}, header))) == time


def test_deleting_what_is_gone_is_no_error() -> None:
    catalog.delete(connection((404, "")), "id-1")
