# SPDX-License-Identifier: Apache-2.0
"""What servers and leases need, out of Nova's and Blazar's answers (in the forms of their API references)."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from chameleon_sites.cloud import SiteError, SiteUnreachable
from image_builder import in_use
from tests.unit.image_builder.test_rotation import image

OLD, OLDER, FREE = image(3), image(2), image(1)


def server(name: str, image_id: str | None) -> dict[str, Any]:
    return {
        "id": f"id-of-{name}",
        "name": name,
        "status": "SHUTOFF",
        "image": {"id": image_id, "links": [{"rel": "bookmark", "href": f"http://nova/images/{image_id}"}]}
        if image_id
        else "",
        "flavor": {"original_name": "baremetal"},
    }


def lease(name: str, status: str, named: str) -> dict[str, Any]:
    return {
        "id": "6ee55c78-ac52-41a6-99af-2d2d73bcc466",
        "name": name,
        "status": status,
        "start_date": "2026-12-26T20:00:00.000000",
        "end_date": "2026-12-27T20:00:00.000000",
        "reservations": [{"resource_type": "physical:host", "resource_properties": named, "status": "pending"}],
    }


class Site:
    """A connection whose catalog has the services that it has answers for."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.session = self
        self.config = SimpleNamespace(
            region_name="CHI@UC", get_endpoint_from_catalog=lambda kind: "http://x" if kind in answers else None
        )

    def get(self, path: str, endpoint_filter: dict[str, str], raise_exc: bool) -> Any:
        assert endpoint_filter["region_name"] == "CHI@UC"
        self.asked.append(path)
        answers = self.answers[endpoint_filter["service_type"]]
        answer = answers.pop(0) if isinstance(answers, list) else answers
        if isinstance(answer, Exception):
            raise answer
        code, body = answer if isinstance(answer, tuple) else (200, answer)
        text = body if isinstance(body, str) else json.dumps(body)
        return SimpleNamespace(ok=code < 400, status_code=code, json=lambda: json.loads(text))


def needed(**answers: Any) -> dict[str, str]:
    connection: Any = Site(**answers)
    return in_use.needed(connection, [OLD, OLDER, FREE])


def test_a_site_without_nova_and_blazar_is_asked_nothing() -> None:
    connection: Any = Site()
    assert in_use.needed(connection, [OLD]) == {}
    assert connection.asked == []


def test_images_that_servers_were_made_of_are_needed() -> None:
    rows = [server("node-1", OLD.id), server("from-volume", None), server("other", "another image")]
    assert needed(compute={"servers": rows}) == {OLD.id: "the server node-1 was made of it"}


def test_servers_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "_PAGE", 1)
    pages = [{"servers": [server("a", OLD.id)]}, {"servers": [server("b", OLDER.id)]}, {"servers": []}]
    connection: Any = Site(compute=pages)
    assert set(in_use.needed(connection, [OLD, OLDER, FREE])) == {OLD.id, OLDER.id}
    assert connection.asked[1].endswith("marker=id-of-a")


def test_a_site_whose_pages_are_smaller_than_asked_for_is_read_to_the_end() -> None:
    more = [{"rel": "next", "href": "http://nova/servers/detail?marker=id-of-a"}]
    pages = [{"servers": [server("a", OLD.id)], "servers_links": more}, {"servers": [server("b", OLDER.id)]}]
    assert set(needed(compute=pages)) == {OLD.id, OLDER.id}


@pytest.mark.parametrize(("status", "counts"), [("PENDING", True), ("ACTIVE", True), ("TERMINATED", False)])
def test_images_that_a_lease_names_are_needed_until_it_ends(status: str, counts: bool) -> None:
    by_id = lease("mine", status, f'["=", "$image", "{OLD.id}"]')
    by_name = {**lease("mine", status, ""), "reservations": [{"image": OLDER.name}]}
    found = needed(reservation={"leases": [by_id, by_name]})
    assert found == ({OLD.id: "the lease mine names it", OLDER.id: "the lease mine names it"} if counts else {})


@pytest.mark.parametrize(
    "answer", [(500, "no"), (403, "no"), "<html>", [[]], {"servers": None}, {"servers": ["x"]}, {"error": "no"}]
)
def test_an_answer_that_tells_nothing_is_an_error(answer: Any) -> None:
    with pytest.raises(SiteError):
        needed(compute=answer)


def test_a_nova_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(SiteUnreachable):
        needed(compute=requests.ConnectionError("refused"))
