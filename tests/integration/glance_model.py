# SPDX-License-Identifier: Apache-2.0
"""A Glance in memory, as far as this project asks one, with the proxy's way of counting calls and injecting faults.

For many rounds in little time; what real Glance does is tested behind :mod:`tests.integration.glance_proxy`.  It
checks at every change what must hold at every moment.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

from image_builder.catalog import TAG
from tests.integration.glance_proxy import Answer, Call, Cut, DropCall, Fault, Flip, Lost, Rewrite, Script

PROJECT = "ours"


class GlanceModel(Script):
    """One site; it stands for the connection to it as well."""

    def __init__(self, region: str) -> None:
        super().__init__()
        self.images: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []  # what must not be, and was, at some moment
        self.image = self
        self.current_project_id = PROJECT
        self.config = SimpleNamespace(region_name=region, get_endpoint_from_catalog=lambda service: None)
        self._used: set[str] = set()
        self._had_holder: set[str] = set()

    def get_endpoint(self) -> str:
        return "http://model"

    def request(self, path: str, method: str, *, raise_exc: bool = False, **arguments: Any) -> Any:
        call, fault = self.arrived(method, f"/v2{path}")
        try:
            self.tell(call, "before")
            if isinstance(fault, Answer):
                return _response(fault.status, fault.body, fault.headers)
            status, document = self._do(call, fault, path, method, arguments)
            self.tell(call, "after")
        except DropCall:
            raise requests.ConnectionError("the connection broke") from None
        if isinstance(fault, Lost) or (isinstance(fault, Cut) and fault.of == "response"):
            raise requests.ConnectionError("the connection broke")
        if isinstance(fault, Rewrite) and status < 300:
            document = fault.change(document)
        body = document if isinstance(document, bytes) else json.dumps(document).encode() if document else b""
        return _response(status, body, {"Content-Type": "application/json"})

    def _do(
        self, call: Call, fault: Fault | None, path: str, method: str, arguments: Mapping[str, Any]
    ) -> tuple[int, Any]:
        url = urlsplit(path)
        image_id = f"{url.path}//".split("/")[2]
        if method == "GET" and not image_id:
            return 200, self._list({key: values[0] for key, values in parse_qs(url.query).items()})
        if method == "POST":
            document = arguments["json"]
            if document["id"] in self._used:
                return 409, {"message": f"Image ID {document['id']} already exists!"}
            self._used.add(document["id"])
            self.images[document["id"]] = {
                "status": "queued",
                "protected": False,
                "owner": PROJECT,
                "size": None,
                "created_at": _now(),
                "updated_at": _now(),
                **document,
            }
            self._check(f"{call}")
            return 201, copy.deepcopy(self.images[document["id"]])
        image = self.images.get(image_id)
        if image is None:
            return 404, {"message": "no such image"}
        if method == "GET":
            return 200, copy.deepcopy(image)
        if method == "PUT":
            return self._upload(call, image, arguments["data"], fault)
        if method == "PATCH":
            if any(entry["value"] == "public" for entry in arguments["json"]):
                return 403, {"message": "You are not authorized to complete publicize_image action."}
            for entry in arguments["json"]:
                image[entry["path"][1:]] = entry["value"]
            image["updated_at"] = _now()
            self._check(f"{call}")
            return 200, copy.deepcopy(image)
        assert method == "DELETE", call
        if image["protected"]:
            return 403, {"message": "protected"}
        if not image["os_hidden"]:
            self.broken.append(f"{call}: {image['name']} was listed when it was deleted")
        del self.images[image_id]
        self._check(f"{call}")
        return 204, None

    def _upload(self, call: Call, image: dict[str, Any], data: Any, fault: Fault | None) -> tuple[int, Any]:
        image["status"] = "saving"
        total, size = hashlib.sha512(), 0
        for block in data:
            sent = bytes(block)
            if isinstance(fault, Flip):
                sent = bytes([sent[0] ^ 1]) + sent[1:]
            total.update(sent)
            size += len(sent)
            self.tell(call, "half")
            if isinstance(fault, Cut):
                raise DropCall
        digest = {"os_hash_algo": "sha512", "os_hash_value": total.hexdigest()}
        image.update(status="active", size=size, updated_at=_now(), **digest)
        return 204, None

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        hidden = query.pop("os_hidden", "false") == "true"
        tag, limit = query.pop("tag", None), int(query.pop("limit"))
        marker = query.pop("marker", None)
        rows = [
            copy.deepcopy(image)
            for image in sorted(self.images.values(), key=lambda image: image["created_at"], reverse=True)
            if image["os_hidden"] == hidden
            and (tag is None or tag in image["tags"])
            and all(image.get(key) == value for key, value in query.items())
        ]
        if marker is not None:
            rows = rows[[row["id"] for row in rows].index(marker) + 1 :]
        more = {"next": f"/v2/images?marker={rows[limit - 1]['id']}"} if len(rows) > limit else {}
        return {"images": rows[:limit], **more}

    def _check(self, call: str) -> None:
        """At every moment each public name has one holder, listed or hidden, and never two that are listed."""
        names = {image["sage_image_name"] for image in self.images.values() if TAG in image["tags"]} | self._had_holder
        for name in names:
            holders = [image for image in self.images.values() if image["name"] == name and image["owner"] == PROJECT]
            if holders:
                self._had_holder.add(name)
            elif name in self._had_holder:
                self.broken.append(f"{call}: nobody has the name {name}")
            if sum(not image["os_hidden"] for image in holders) > 1:
                self.broken.append(f"{call}: two have the name {name}")
            for image in holders:
                if image["status"] != "active" or not re.fullmatch("[0-9a-f]{128}", image["sage_sha512"]):
                    self.broken.append(f"{call}: {image['id']} has the name {name} and was not checked")
                elif image["sage_sha512"] != image["os_hash_value"]:
                    self.broken.append(f"{call}: {image['id']} has the name {name} and other data than were built")


def _response(status: int, body: bytes, headers: Mapping[str, str]) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = body
    response.headers.update(headers)
    return response


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
