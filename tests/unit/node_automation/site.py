# SPDX-License-Identifier: Apache-2.0
"""A site whose services give recorded answers, in the forms of their API references."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from chameleon_sites.sites import DiskFormat, Site, SiteKind
from node_automation.ledger import Run

UC = Site("CHI@UC", "https://uc/v3", SiteKind.BAREMETAL, (DiskFormat.RAW,))
TACC = Site("CHI@TACC", "https://tacc/v3", SiteKind.BAREMETAL, (DiskFormat.RAW,))
KVM = Site("KVM@TACC", "https://kvm/v3", SiteKind.KVM, (DiskFormat.RAW,))
RUN = Run("bees", "0123abcd")

Answer = tuple[int, Any] | dict[str, Any] | Exception | Callable[[Any], Any]


class FakeSite:
    """A connection.  ``answers``: ``"POST /leases"`` -> what is answered, once each and the last for ever.

    An answer is a document, a code with a document or text, an exception, or a function of the request's body.
    """

    def __init__(self, answers: dict[str, Any], name: str = "CHI@UC", auth: dict[str, str] | None = None) -> None:
        self.answers = {key: list(value) if isinstance(value, list) else [value] for key, value in answers.items()}
        self.asked: list[tuple[str, Any]] = []
        self.current_project_id = "p1"
        self.config = SimpleNamespace(region_name=name, get_auth_args=lambda: auth or {})
        self.session = SimpleNamespace(get_user_id=lambda: "u1", request=self.request)
        for service in ("compute", "network", "identity"):
            setattr(self, service, SimpleNamespace(request=self.request))

    def request(
        self,
        path: str,
        method: str,
        *,
        raise_exc: bool,
        json: Any = None,
        microversion: Any = None,
        endpoint_filter: Any = None,
    ) -> Any:
        assert not raise_exc
        key = f"{method} {path}"
        self.asked.append((key, json))
        known = key if key in self.answers else f"{method} {path.partition('?')[0]}"
        assert known in self.answers, f"nobody expects {key}"
        answers = self.answers[known]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(json)
        if isinstance(answer, Exception):
            raise answer
        code, body = answer if isinstance(answer, tuple) else (200, answer)
        return response(code, body)

    def bodies(self, key: str) -> list[Any]:
        """What was sent with this request, each time."""
        return [body for asked, body in self.asked if asked == key]


def response(code: int, body: Any) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return SimpleNamespace(
        ok=code < 400,
        status_code=code,
        text=text,
        content=text.encode(),
        headers={},
        json=lambda: json.loads(text),
    )


def blazar_error(code: int, message: str) -> tuple[int, dict[str, Any]]:
    """As ``blazar/api/v1/utils.py`` renders it."""
    return code, {"error_code": code, "error_message": message, "error_name": code}


def nova_error(code: int, message: str, name: str = "forbidden") -> tuple[int, dict[str, Any]]:
    return code, {name: {"code": code, "message": message}}


def neutron_error(code: int, kind: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"NeutronError": {"type": kind, "message": message, "detail": ""}}


def lease_row(
    name: str = "sage-bees-chi_uc-0123abcd",
    status: str = "ACTIVE",
    *,
    lease_id: str = "l1",
    ends: str = "2099-01-02T10:00:00.000000",
    nodes: int = 2,
    node_type: str = "compute_skylake",
    floating_ips: int = 0,
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    reservations: list[dict[str, Any]] = []
    if nodes:
        reservations.append(
            {
                "id": f"{lease_id}-hosts",
                "resource_type": "physical:host",
                "status": "active",
                "min": nodes,
                "max": nodes,
                "hypervisor_properties": "",
                "resource_properties": json.dumps(["=", "$node_type", node_type]),
            }
        )
    if floating_ips:
        reservations.append(
            {
                "id": f"{lease_id}-ips",
                "resource_type": "virtual:floatingip",
                "status": "active",
                "network_id": "public-id",
                "amount": floating_ips,
                "required_floatingips": [],
            }
        )
    return {
        "id": lease_id,
        "name": name,
        "status": status,
        "project_id": "p1",
        "start_date": "2026-01-02T10:00:00.000000",
        "end_date": ends,
        "degraded": False,
        "reservations": reservations,
        "events": events or [],
    }


def server_row(name: str = "bees-waggle-1", status: str = "ACTIVE", **more: Any) -> dict[str, Any]:
    return {
        "id": f"id-{name}",
        "name": name,
        "status": status,
        "created": "2026-01-02T10:00:00Z",
        "OS-EXT-STS:task_state": None,
        "image": {"id": "image-id"},
        "metadata": {"sage_run": str(RUN), "sage_node": name, "sage_host_key": "ssh-ed25519 AAAA"},
        "addresses": {
            "sharednet1": [
                {"addr": "10.140.0.9", "version": 4, "OS-EXT-IPS:type": "fixed"},
                {"addr": "192.5.87.3", "version": 4, "OS-EXT-IPS:type": "floating"},
            ]
        },
        **more,
    }


NETWORKS = {
    "networks": [
        {"id": "public-id", "name": "public", "router:external": True},
        {"id": "shared-id", "name": "sharednet1", "router:external": False},
    ]
}
FLAVORS = {
    "flavors": [
        {"id": "bm-id", "name": "baremetal"},
        {"id": "medium-id", "name": "m1.medium"},
        {"id": "r1", "name": "reservation:r1"},
    ]
}
