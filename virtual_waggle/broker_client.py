# SPDX-License-Identifier: Apache-2.0
"""How services come to a broker: AMQP by pika, and the management API by HTTP.

Connecting waits for a broker that is not there yet, with growing pauses, until a deadline.  What the broker refuses
(a password, a certificate) is told at once: waiting would not help.
"""

import base64
import contextlib
import json
import logging
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from groundwork.errors import InputError, SageError
from virtual_waggle import broker

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds between attempts
_TIMEOUT = 10.0  # seconds for one attempt or one request
_LARGEST_ANSWER = 16 << 20  # bytes


class BrokerError(SageError):
    """A broker that is not there, or did not do what it was asked to."""


class Refused(BrokerError):
    """The broker does not let this user in."""


class NotFound(BrokerError):
    """The management API knows no such thing."""


@dataclass(frozen=True)
class Management:
    """The management API of a broker.  ``url`` as ``http://127.0.0.1:15672``."""

    url: str
    password: str = field(repr=False)
    user: str = broker.ADMIN


def parse_address(text: str, origin: str) -> tuple[str, int]:
    """Host and port of ``host:port``; brackets are for addresses of IPv6.  InputError names ``origin``."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InputError(f"{origin}: expected host:port, found {text!r}", hint="as rabbitmq:5672")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_addresses(text: str, origin: str) -> list[tuple[str, int]]:
    """Hosts and ports of ``host:port,host:port``: the brokers of a cluster, in the order in which they are tried."""
    return [parse_address(part.strip(), origin) for part in text.split(",")]


def variable(environment: Mapping[str, str], name: str) -> str:
    """A variable of the environment that a service can't do without."""
    if not environment.get(name):
        raise InputError(f"the environment variable {name} is not set")
    return environment[name]


def read_secret(path: Path) -> str:
    """A password out of its file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        hint = "use sudo, or be the user whose node it is" if isinstance(error, PermissionError) else None
        raise InputError(f"can't read the secret {path}: {reason}", hint=hint) from None
    if not text:
        raise InputError(f"the secret {path} is empty")
    return text


def by_password(address: tuple[str, int], user: str, password: str, **more: Any) -> pika.ConnectionParameters:
    """Parameters for a node's broker."""
    return _parameters(address, credentials=pika.PlainCredentials(user, password), **more)


def by_certificate(address: tuple[str, int], ca: Path, certificate: Path, key: Path) -> pika.ConnectionParameters:
    """Parameters for a Beehive's broker; the certificate's common name is the user."""
    try:
        context = ssl.create_default_context(cafile=str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"can't use the certificate {certificate} with {key} and {ca}: {error}") from None
    return _parameters(
        address,
        credentials=pika.credentials.ExternalCredentials(),
        ssl_options=pika.SSLOptions(context, address[0]),
    )


def _parameters(address: tuple[str, int], **more: Any) -> pika.ConnectionParameters:
    given = {
        "connection_attempts": 1,
        "socket_timeout": _TIMEOUT,
        "stack_timeout": _TIMEOUT,
        "blocked_connection_timeout": None,  # a broker out of disk makes us wait; that is no error
        "heartbeat": 30,
    }
    return pika.ConnectionParameters(host=address[0], port=address[1], **{**given, **more})


def connect(
    *places: pika.ConnectionParameters, deadline: float, stop: threading.Event | None = None
) -> pika.BlockingConnection:
    """A connection to the first of these brokers that lets us in, within ``deadline`` seconds.

    Raises Refused where all refuse, BrokerError at the deadline or on ``stop``.
    """
    for left in attempts(f"the broker at {' or '.join(map(_place_of, places))}", deadline, stop):
        refusals = []
        for parameters in places:
            try:
                return _connected(parameters)
            except Refused as refusal:
                refusals.append(refusal)
            except (pika.exceptions.AMQPError, AMQPConnectorException, OSError) as error:
                logger.debug("%s: %r, %.0f s left", _place_of(parameters), error, left)
        if len(refusals) == len(places):
            raise refusals[0]
    raise AssertionError("attempts ends by an error")


def _connected(parameters: pika.ConnectionParameters) -> pika.BlockingConnection:
    where = _place_of(parameters)
    try:
        return pika.BlockingConnection(parameters)
    except (
        pika.exceptions.ProbableAuthenticationError,
        pika.exceptions.AuthenticationError,
        pika.exceptions.ProbableAccessDeniedError,
    ):
        raise Refused(f"the broker at {where} refuses this user", hint="is its password of this broker?") from None
    except ssl.SSLCertVerificationError as error:
        raise Refused(f"the broker at {where} is not trusted: {error.verify_message}") from None


def _place_of(parameters: pika.ConnectionParameters) -> str:
    return f"{parameters.host}:{parameters.port}"


def attempts(what: str, deadline: float, stop: threading.Event | None = None) -> Iterator[float]:
    """Yield the seconds left before each attempt, with growing pauses between; raises BrokerError at the end."""
    begin = time.monotonic()
    pause = _FIRST_PAUSE
    told = False
    while True:
        left = deadline - (time.monotonic() - begin)
        yield left
        left = deadline - (time.monotonic() - begin)
        if left <= 0:
            raise BrokerError(f"{what} did not answer within {deadline:g} s", hint="is it running?")
        if not told:
            told = True
            logger.warning("waiting for %s", what)
        # Not all services of a node at the same moment.
        wait = min(pause * random.uniform(0.8, 1.2), left)  # noqa: S311
        if stop is None:
            time.sleep(wait)
        elif stop.wait(wait):
            raise BrokerError(f"{what}: told to end while waiting for it")
        pause = min(pause * 1.6, _LONGEST_PAUSE)


def request(management: Management, method: str, path: str, body: Any = None, *, timeout: float = _TIMEOUT) -> Any:
    """One request to the management API; ``path`` comes after ``/api/``.  The answer's JSON, or None.

    Raises NotFound, Refused, or BrokerError.
    """
    token = base64.b64encode(f"{management.user}:{management.password}".encode()).decode()
    call = urllib.request.Request(  # noqa: S310 - the URL is our own
        f"{management.url}/api/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
    )
    try:
        with _opener.open(call, timeout=timeout) as answer:
            text = answer.read(_LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason(error.read(1 << 12))
        kind = {404: NotFound, 401: Refused}.get(error.code, BrokerError)
        raise kind(f"broker: {method} {path}: {error.code} {reason}") from None
    except (OSError, HTTPException) as error:
        raise BrokerError(f"broker at {management.url}: {getattr(error, 'reason', error)}") from None
    try:
        return json.loads(text) if text else None
    except ValueError:
        raise BrokerError(f"broker: {method} {path}: the answer is no JSON") from None


# The API is on this machine or in this stack: a proxy that the environment names is not for it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _reason(text: bytes) -> str:
    try:
        found = json.loads(text)
        return str(found.get("reason") or found.get("error") or "")
    except (ValueError, AttributeError):
        return ""


def wait_for_health(management: Management, *, port: int, deadline: float, stop: threading.Event | None = None) -> None:
    """Return when the broker listens at ``port`` (as it sees it itself) and no alarm is on."""
    for left in attempts(f"the broker at {management.url}", deadline, stop):
        if is_healthy(management, port=port, timeout=max(1.0, min(left, _TIMEOUT))):
            return


def is_healthy(management: Management, *, port: int, timeout: float = _TIMEOUT) -> bool:
    """Whether the broker listens and takes messages."""
    try:
        request(management, "GET", f"health/checks/port-listener/{port}", timeout=timeout)
        request(management, "GET", "health/checks/local-alarms", timeout=timeout)
    except BrokerError as error:  # one that starts refuses everyone until it has read its definitions
        logger.debug("not healthy yet: %s", error)
        return False
    return True


def put_user(management: Management, user: Mapping[str, Any], permission: Mapping[str, str]) -> None:
    """Make a user, or make it what it should be: the shapes are those of ``broker.user`` and a permission."""
    name = _quoted(user["name"])
    tags = ",".join(user["tags"])
    request(management, "PUT", f"users/{name}", {"password_hash": user["password_hash"], "tags": tags})
    for limit, value in user.get("limits", {}).items():
        request(management, "PUT", f"user-limits/{name}/{limit}", {"value": value})
    rights = {key: permission[key] for key in ("configure", "write", "read")}
    request(management, "PUT", f"permissions/{_quoted(permission['vhost'])}/{name}", rights)


def delete_user(management: Management, name: str) -> None:
    """Take a user away, if there is one, and close its connections."""
    with contextlib.suppress(NotFound):
        request(management, "DELETE", f"users/{_quoted(name)}")
    for connection in request(management, "GET", "connections?columns=name,user") or []:
        if connection.get("user") == name:
            with contextlib.suppress(NotFound):
                request(management, "DELETE", f"connections/{_quoted(connection['name'])}")


def users(management: Management) -> list[str]:
    """The names of all users."""
    return [entry["name"] for entry in request(management, "GET", "users?columns=name")]


def put_node(management: Management, node_id: str) -> None:
    """Let a node in at the Beehive's broker."""
    login = broker.node_login(node_id)
    put_user(management, login.user, login.permission)


def queue_depth(management: Management, name: str) -> tuple[int, int]:
    """Messages that are ready in a queue, and those given out but not acknowledged.

    The management API knows them with a delay of up to 5 s.
    """
    found = queue(management, name)
    return found.get("messages_ready", 0), found.get("messages_unacknowledged", 0)


def brokers(management: Management) -> dict[str, bool]:
    """The Erlang names of the brokers of this cluster, and whether each runs, as this broker sees it."""
    return {entry["name"]: entry["running"] for entry in request(management, "GET", "nodes?columns=name,running")}


def queue(management: Management, name: str) -> dict[str, Any]:
    """What the management API tells of a queue, with a delay of up to 5 s."""
    return dict(request(management, "GET", f"queues/{_quoted(broker.VHOST)}/{_quoted(name)}"))


def put_shovel(management: Management, shovel: Mapping[str, Any]) -> None:
    """Make the shovel, or make it what it should be, without a restart of the broker."""
    path = f"parameters/shovel/{_quoted(shovel['vhost'])}/{_quoted(shovel['name'])}"
    request(management, "PUT", path, dict(shovel))


def delete_shovel(management: Management) -> None:
    """Take the shovel away, if there is one."""
    with contextlib.suppress(NotFound):
        request(management, "DELETE", f"parameters/shovel/{_quoted(broker.VHOST)}/{_quoted(broker.SHOVEL)}")


def shovel_state(management: Management) -> str:
    """``running``, ``starting``, ``terminated``, or "" where there is no shovel."""
    for entry in request(management, "GET", f"shovels/{_quoted(broker.VHOST)}") or []:
        if entry.get("name") == broker.SHOVEL:
            return str(entry.get("state", ""))
    return ""


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
