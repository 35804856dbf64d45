# SPDX-License-Identifier: Apache-2.0
"""Who is told of a run: commands, webhooks and mail, as a file of the user's says.

A hook that fails, or hangs beyond its deadline, is told; it never fails what was published.  Passwords and tokens come
from the environment or from a file that nobody else can read, and are in no log, report or message of an error.
"""

import json
import os
import smtplib
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import groundwork
from groundwork import console, documents, process, products
from groundwork.compat import StrEnum
from groundwork.documents import Document
from groundwork.errors import SageError
from groundwork.worker import Worker
from image_builder import summary
from image_builder.report import RunReport

_DEADLINE = 30.0  # seconds, unless a hook says otherwise
_SLACK_MOST = 2000  # characters of one block's text; Slack takes 3,000, with its signs escaped
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class When(StrEnum):
    """After which runs a hook is called."""

    ALWAYS = "always"
    CHANGED = "changed"  # an image is new, or something failed
    FAILED = "failed"


class Form(StrEnum):
    """What a webhook gets."""

    REPORT = "report"  # the report, as --json prints it
    SLACK = "slack"  # a message


class Security(StrEnum):
    """How the way to a mail server is secured."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


@dataclass(frozen=True)
class Command:
    """A program, which gets the report on its standard input."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Webhook:
    """A URL that the report is sent to.  Of a chat's, the path is as good as a password."""

    url: str = field(repr=False)
    form: Form
    token: str | None = field(repr=False)


@dataclass(frozen=True)
class Mail:
    """A mail by SMTP: the summary, with the report beside it."""

    server: str
    port: int
    security: Security
    user: str | None
    password: str | None = field(repr=False)
    sender: str
    to: tuple[str, ...]


@dataclass(frozen=True)
class Hook:
    """Whom to tell, and when; ``deadline`` in seconds."""

    name: str
    when: When
    deadline: float
    action: Command | Webhook | Mail


_SECRET = {
    "type": "object",
    "description": "{variable: NAME} or {file: PATH}, a file of mode 0600",
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"variable": {"type": "string"}, "file": {"type": "string"}},
}
_ADDRESS = {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+$", "description": "a mail address"}
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "when": {"enum": [str(word) for word in When]},
            "deadline": {"type": "number", "minimum": 0.1, "maximum": 3600, "description": "seconds"},
            "command": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 1,
                "description": "a program and its words, as a list",
            },
            "webhook": {
                "type": "object",
                "additionalProperties": False,
                "required": ["url"],
                "properties": {
                    "url": {
                        "anyOf": [{"type": "string", "pattern": "^https?://"}, _SECRET],
                        "description": "a URL that begins with http:// or https://, {variable: NAME} or {file: PATH}",
                    },
                    "form": {"enum": [str(word) for word in Form]},
                    "token": _SECRET,
                },
            },
            "mail": {
                "type": "object",
                "additionalProperties": False,
                "required": ["server", "from", "to"],
                "properties": {
                    "server": {"type": "string"},
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                    "security": {"enum": [str(word) for word in Security]},
                    "user": {"type": "string"},
                    "password": _SECRET,
                    "from": _ADDRESS,
                    "to": {"type": "array", "items": _ADDRESS, "minItems": 1},
                },
            },
        },
    },
}
_FILE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["hooks"],
    "properties": {"hooks": SCHEMA},
}


def load(path: Path) -> tuple[Hook, ...]:
    """The hooks of a file (YAML, a list under the key ``hooks``)."""
    return read(documents.load(path, _FILE))


def read(document: Document, environment: Mapping[str, str] = os.environ) -> tuple[Hook, ...]:
    """The hooks of a document that was checked against :data:`SCHEMA` at its key ``hooks``; secrets are read too.

    Raises InputError, with file, line and key, for what can't be used.
    """
    found = []
    for number, row in enumerate(document.data.get("hooks", [])):
        keys: tuple[str | int, ...] = ("hooks", number)
        kinds = [kind for kind in ("command", "webhook", "mail") if kind in row]
        if len(kinds) != 1:
            raise document.error(keys, "a hook has one of the keys command, webhook and mail", of_key=False)
        (kind,) = kinds
        action: Command | Webhook | Mail
        if kind == "command":
            action = Command(tuple(row["command"]))
        elif kind == "webhook":
            action = _webhook(document, keys, row["webhook"], environment)
        else:
            action = _mail(document, keys, row["mail"], environment)
        found.append(
            Hook(
                name=row.get("name", f"{kind} {number + 1}"),
                when=When(row.get("when", When.ALWAYS)),
                deadline=float(row.get("deadline", _DEADLINE)),
                action=action,
            )
        )
    return tuple(found)


def call(hooks: Sequence[Hook], report: RunReport) -> tuple[str, ...]:
    """Tell all who want to know of such a run, one after another.  Returns the names of those that failed."""
    failed = []
    for hook in hooks:
        if not _is_wanted(hook.when, report):
            continue
        try:
            with console.stage(f"hook {hook.name}", brief=True):
                if isinstance(hook.action, Command):
                    text = products.to_text(report)
                    process.run(hook.action.words, input=text.encode(), timeout=hook.deadline)
                elif isinstance(hook.action, Webhook):
                    _post(hook.action, report, hook.deadline)
                else:
                    _send(hook.action, report, hook.deadline)
        except (SageError, OSError) as error:
            failed.append(hook.name)
            console.warn(f"the hook {hook.name!r} failed: {error}")
    return tuple(failed)


def within(deadline: float, work: Callable[[], None]) -> None:
    """Do what a slow server may stretch without end; raises what it raised, or SageError when the time is over."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    if not Worker(guarded).wait(deadline):
        raise SageError(f"not done within {deadline:g} s")
    if raised:
        raise raised[0]


def slack(report: RunReport) -> dict[str, Any]:
    """The report as a message in Slack's form: the headline for notifications, the summary below."""
    head = summary.headline(report)
    lines = "\n".join(f"• {line}" for line in summary.lines(report))
    blocks = [f"*{_escaped(head)}*", _escaped(lines[:_SLACK_MOST]), _escaped(summary.figures(report))]
    return {
        "text": _escaped(head),
        "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in blocks if text],
    }


def _is_wanted(when: When, report: RunReport) -> bool:
    return when is When.ALWAYS or report.failed or (when is When.CHANGED and report.changed)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is sent goes to the host that was named, and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(hook: Webhook, report: RunReport, deadline: float) -> None:
    # urllib and not requests, which logs the path when it debugs.
    host = urlsplit(hook.url).hostname
    document = slack(report) if hook.form is Form.SLACK else products.to_data(report)
    headers = {"Content-Type": "application/json", "User-Agent": f"sage-chameleon/{groundwork.__version__}"}
    if hook.token is not None:
        headers["Authorization"] = f"Bearer {hook.token}"
    request = urllib.request.Request(hook.url, json.dumps(document).encode(), headers, method="POST")  # noqa: S310
    opener = urllib.request.build_opener(_NoRedirect)

    def post() -> None:
        try:
            opener.open(request, timeout=deadline).close()
        except urllib.error.HTTPError as error:
            error.close()
            raise SageError(f"{host} answered {error.code}") from None
        except urllib.error.URLError as error:
            raise SageError(f"{host} does not answer: {error.reason}") from None
        except (OSError, ValueError) as error:
            # Some of these have the whole URL in their text.
            raise SageError(f"{host} does not answer as it should: {type(error).__name__}") from None

    within(deadline, post)


def _send(mail: Mail, report: RunReport, deadline: float) -> None:
    message = EmailMessage()
    message["Subject"] = summary.headline(report)
    message["From"] = mail.sender
    message["To"] = ", ".join(mail.to)
    message.set_content("\n".join([*summary.lines(report), "", summary.figures(report)]) + "\n")
    message.add_attachment(products.to_text(report), subtype="json", filename="report.json")

    def send() -> None:
        context = ssl.create_default_context()
        server: smtplib.SMTP
        try:
            if mail.security is Security.TLS:
                server = smtplib.SMTP_SSL(mail.server, mail.port, timeout=deadline, context=context)
            else:
                server = smtplib.SMTP(mail.server, mail.port, timeout=deadline)
            with server:
                if mail.security is Security.STARTTLS:
                    server.starttls(context=context)
                if mail.user is not None and mail.password is not None:
                    server.login(mail.user, mail.password)
                refused = server.send_message(message)
        except smtplib.SMTPAuthenticationError as error:
            raise SageError(f"{mail.server} does not take user and password ({error.smtp_code})") from None
        except (smtplib.SMTPException, OSError) as error:
            raise SageError(f"{mail.server}: {error}") from None
        if refused:
            raise SageError(f"{mail.server} refused {', '.join(refused)}")

    within(deadline, send)


def _webhook(
    document: Document, keys: tuple[str | int, ...], row: dict[str, Any], environment: Mapping[str, str]
) -> Webhook:
    at = (*keys, "webhook")
    url = row["url"]
    if not isinstance(url, str):
        url = _secret(document, (*at, "url"), url, environment)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise document.error((*at, "url"), "expected a URL that begins with http:// or https://")
    token = _secret(document, (*at, "token"), row["token"], environment) if "token" in row else None
    if token is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise document.error((*at, "token"), "a token is not sent by plain http", hint="name an https:// URL")
    return Webhook(url, Form(row.get("form", Form.REPORT)), token)


def _mail(document: Document, keys: tuple[str | int, ...], row: dict[str, Any], environment: Mapping[str, str]) -> Mail:
    at = (*keys, "mail")
    if ("user" in row) != ("password" in row):
        raise document.error(at, "user and password go together")
    security = Security(row.get("security", Security.STARTTLS))
    if "password" in row and security is Security.NONE and row["server"] not in _LOOPBACK:
        raise document.error((*at, "security"), "a password is not sent without TLS", hint="security: starttls, or tls")
    ports = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}
    return Mail(
        server=row["server"],
        port=row.get("port", ports[security]),
        security=security,
        user=row.get("user"),
        password=_secret(document, (*at, "password"), row["password"], environment) if "password" in row else None,
        sender=row["from"],
        to=tuple(row["to"]),
    )


def _secret(
    document: Document, keys: tuple[str | int, ...], row: dict[str, str], environment: Mapping[str, str]
) -> str:
    """A secret, out of the environment or of a file that belongs to its reader alone."""
    if "variable" in row:
        found = environment.get(row["variable"], "")
        if not found:
            hint = "sudo does not hand it on; a file does"
            raise document.error(keys, f"the environment has no variable {row['variable']}", hint=hint)
        return found
    path = Path(row["file"]).expanduser()
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise document.error(keys, f"{path} can be read by others", hint=f"chmod 600 {path}")
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise document.error(keys, f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise document.error(keys, f"{path} is not a text") from None
    if not text or "\n" in text:
        raise document.error(keys, f"{path} has not just one line")
    return text


def _escaped(text: str) -> str:
    """Slack's three signs."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
