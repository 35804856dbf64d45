# SPDX-License-Identifier: Apache-2.0
"""Requests: what answers mean, what is asked again, and what is not."""

from typing import Any

import pytest
import requests
from keystoneauth1 import exceptions as auth_errors

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.errors import InputError
from node_automation import api
from node_automation.api import Gone, Refused, Service
from tests.unit.node_automation.site import FakeSite, blazar_error, neutron_error, nova_error


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "waits", lambda first, longest: iter([0.0] * 10))


def ask(answer: Any, method: str = "GET", service: Service = Service.COMPUTE) -> Any:
    connection: Any = FakeSite({f"{method} /x": answer})
    return api.ask(connection, service, method, "/x")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (nova_error(403, "Quota exceeded"), "Quota exceeded"),
        (neutron_error(409, "OverQuota", "Quota exceeded for resources"), "Quota exceeded for resources"),
        (blazar_error(400, "Malformed requirements"), "Malformed requirements"),
        ((500, "<html>broken</html>"), "<html>broken</html>"),
        ((400, {"error": {"code": 400, "message": "bad\nrequest", "title": "Bad Request"}}), "bad request"),
    ],
)
def test_what_a_service_says_is_told_in_one_line(answer: Any, said: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(answer)
    assert caught.value.said == said
    assert caught.value.code == answer[0]


def test_what_is_not_there_is_gone() -> None:
    with pytest.raises(Gone):
        ask(nova_error(404, "Instance could not be found", "itemNotFound"))


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_site_that_is_busy_is_asked_again_where_that_changes_nothing(code: int) -> None:
    assert ask([(code, ""), {"a": 1}]) == {"a": 1}
    with pytest.raises(SiteUnreachable):
        ask([(code, ""), {"a": 1}], "POST")


def test_a_connection_that_breaks_is_tried_three_times() -> None:
    broken = requests.ConnectionError("reset")
    assert ask([broken, broken, {"a": 1}]) == {"a": 1}
    with pytest.raises(SiteUnreachable):
        ask([broken, broken, broken, {"a": 1}])


def test_a_missing_service_is_named() -> None:
    with pytest.raises(InputError, match=r"no reservation service \(Blazar\)"):
        ask(auth_errors.EndpointNotFound("reservation"), service=Service.RESERVATION)


def test_wrong_credentials_are_the_user_s_to_mend() -> None:
    with pytest.raises(InputError, match="does not take the credentials"):
        ask((401, ""))


@pytest.mark.parametrize("answer", ["[]", {"servers": None}, {"servers": ["x"]}, {}])
def test_an_answer_that_is_no_list_is_an_error(answer: Any) -> None:
    connection: Any = FakeSite({"GET /x": (200, answer)})
    with pytest.raises(SiteError, match="no list of servers"):
        api.rows(connection, Service.COMPUTE, "/x", "servers")


def test_a_page_that_is_no_json_is_a_site_under_repair() -> None:
    with pytest.raises(SiteUnreachable, match="no JSON"):
        ask((200, "<html>maintenance</html>"))


def test_no_answer_at_all_is_an_empty_document() -> None:
    assert ask((204, ""), "DELETE") == {}
