# SPDX-License-Identifier: Apache-2.0
"""Telling of a run: real programs, a real HTTP server, a real SMTP server with TLS; and what fails of it."""

import json
import logging
import smtplib
import ssl
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from prometheus_client.parser import text_string_to_metric_families

from groundwork import process
from groundwork.settings import resolve
from image_builder import cli, hooks, settings
from image_builder.report import RunReport
from tests.integration.conftest import free_ports
from tests.unit.image_builder import reports

SECRET = "hunter2-open-sesame"


@dataclass
class Web:
    """An HTTP server: what it got, and what it answers with."""

    url: str
    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200
    hang: threading.Event = field(default_factory=threading.Event)
    slow: bool = False


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((self.command, self.path, dict(self.headers), body))
            if made.slow:
                made.hang.wait(60)
            self.send_response(made.status)
            if made.status == 302:
                self.send_header("Location", made.url + "elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET = do_POST  # noqa: N815 - the names are http.server's

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Web(f"http://127.0.0.1:{server.server_port}/")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    made.hang.set()
    server.shutdown()
    server.server_close()


@dataclass
class Post:
    """A mail server: where it listens, and what it took."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of localhost's in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    words = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        *words,
        "-days",
        "2",
        "-keyout",
        path,
        "-out",
        path.with_suffix(".crt"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def smtp(certificate: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Post]:
    """With STARTTLS, or with the parameter ``tls`` with TLS from the first byte; a user has to log in."""

    class Box:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
            mail = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            made.mails.append(mail)
            return "250 OK"

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"sage", SECRET.encode())
        return AuthResult(success=good, handled=False)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    first = getattr(request, "param", "starttls") == "tls"
    how: dict[str, Any] = {"ssl_context": context} if first else {"tls_context": context, "require_starttls": True}
    # With TLS from the first byte aiosmtpd does not count the connection as encrypted.
    how |= {"auth_required": True, "authenticator": authenticate, "auth_require_tls": not first}
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    made = Post(free_ports())
    controller = Controller(Box(), hostname="localhost", port=made.port, **how)
    controller.start()
    yield made
    controller.stop()


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., int]:
    """Tell of a report by the hooks given as YAML and by other settings; returns the exit code."""

    def run(report: RunReport, text: str = "hooks: []", **given: Any) -> int:
        (tmp_path / "hooks.yaml").write_text(text)
        values = resolve(settings.CREATE_IMAGE, Namespace(**given), configuration={}, environment={})
        return cli.announce(report, values, hooks.load(tmp_path / "hooks.yaml"))

    return run


Tell = Callable[..., int]


def test_a_command_gets_the_report_on_its_standard_input(tell: Tell, tmp_path: Path) -> None:
    target = tmp_path / "got.json"
    assert tell(reports.good(), f"hooks: [{{command: [sh, -c, 'cat > {target}']}}]") == 0
    assert json.loads(target.read_text())["exit_code"] == 0
    assert tell(reports.mixed(), f"hooks: [{{command: [sh, -c, 'cat > {target}']}}]") == 3
    assert json.loads(target.read_text())["images"][1]["problem"]["message"] == reports.WRONG.message


def test_a_command_that_reads_nothing_has_not_failed(tell: Tell) -> None:
    assert tell(reports.run(*(reports.image(f"n{n}") for n in range(2000))), "hooks: [{command: ['true']}]") == 0


def test_a_command_that_fails_is_told_and_does_not_stop_the_next(
    tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").unlink(missing_ok=True)
    text = (
        "hooks:\n- {name: first, command: [sh, -c, 'echo no luck >&2; exit 7']}\n"
        f"- {{command: [touch, {tmp_path / 'other'}]}}\n- {{command: [no-such-program]}}\n"
    )
    assert tell(reports.good(), text) == 4, "all is done, and not all were told"
    said = capsys.readouterr().err
    assert "the hook 'first' failed: sh failed with exit status 7: no luck" in said
    assert "no-such-program" in said
    assert (tmp_path / "other").exists()
    assert tell(reports.mixed(), text) == 3, "what failed of the publication counts before that"


def is_running(pid: str) -> bool:
    """Whether a process does anything; one that has ended may wait for its parent yet."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_hangs_ends_at_its_deadline_with_its_children(
    tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    pid = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {pid}; wait"
    assert tell(reports.good(), f"hooks: [{{deadline: 0.5, command: [sh, -c, '{script}']}}]") == 4
    assert time.monotonic() - begin < 10
    assert "sh did not end within 0.5 s" in capsys.readouterr().err
    for _ in process.poll_until(5):
        if not is_running(pid.read_text().strip()):
            break
    assert not is_running(pid.read_text().strip())


def test_a_webhook_gets_plain_json_and_a_token(
    tell: Tell, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "token").chmod(0o600)
    token = f"{{file: {tmp_path / 'token'}}}"
    assert tell(reports.good(), f"hooks: [{{webhook: {{url: '{web.url}here', token: {token}}}}}]") == 0
    ((method, path, headers, body),) = web.got
    assert (method, path, headers["Content-Type"]) == ("POST", "/here", "application/json")
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert json.loads(body)["format"] == 1


def test_a_webhook_speaks_slacks_form(tell: Tell, web: Web) -> None:
    assert tell(reports.mixed(), f"hooks: [{{webhook: {{url: '{web.url}', form: slack}}}}]") == 3
    message = json.loads(web.got[0][3])
    assert set(message) == {"text", "blocks"}
    assert message["text"] == "sage-image nightly: 2 failures"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_what_a_webhook_answers_counts_and_no_secret_is_told(
    tell: Tell, web: Web, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    web.status = status
    assert tell(reports.good(), f"hooks: [{{webhook: {{url: '{web.url}services/{SECRET}'}}}}]") == 4
    said = capsys.readouterr()
    assert f"127.0.0.1 answered {status}" in said.err
    assert len(web.got) == 1, "it does not go on to where it was sent"
    assert SECRET not in said.out + said.err + caplog.text


def test_a_webhook_that_hangs_or_is_not_there(
    tell: Tell, web: Web, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web.slow = True
    begin = time.monotonic()
    assert tell(reports.good(), f"hooks: [{{deadline: 0.5, webhook: {{url: '{web.url}{SECRET}'}}}}]") == 4
    assert tell(reports.good(), f"hooks: [{{webhook: {{url: 'http://127.0.0.1:9/{SECRET}'}}}}]") == 4
    assert time.monotonic() - begin < 10
    said = capsys.readouterr().err
    assert "127.0.0.1 does not answer" in said
    assert SECRET not in said + caplog.text


def mail(port: int, folder: Path, *, password: str = SECRET, security: str = "starttls", deadline: float = 20) -> str:
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o600)
    return (
        f"hooks:\n- deadline: {deadline}\n  mail:\n    server: localhost\n    port: {port}\n"
        f"    security: {security}\n    user: sage\n    password: {{file: {folder / 'password'}}}\n"
        "    from: sage@example.org\n    to: [ops@example.org, more@example.org]\n"
    )


@pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")  # it is told so of TLS from the first byte
@pytest.mark.parametrize(("smtp", "security"), [("starttls", "starttls"), ("tls", "tls")], indirect=["smtp"])
def test_a_mail_goes_by_tls_with_the_report_beside_it(tell: Tell, smtp: Post, tmp_path: Path, security: str) -> None:
    assert tell(reports.mixed(), mail(smtp.port, tmp_path, security=security)) == 3
    (got,) = smtp.mails
    assert got["Subject"] == "sage-image nightly: 2 failures"
    assert got["To"] == "ops@example.org, more@example.org"
    body = got.get_body()
    assert body is not None
    assert "Sage-Ubuntu24.04-CUDA: there is no such thing" in body.get_content()
    (attached,) = got.iter_attachments()
    assert attached.get_filename() == "report.json"
    assert json.loads(attached.get_content())["exit_code"] == 3


def test_a_wrong_password_is_told_and_not_shown(
    tell: Tell,
    smtp: Post,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = SECRET + "-wrong"
    assert tell(reports.good(), mail(smtp.port, tmp_path, password=wrong)) == 4
    said = capsys.readouterr().err
    assert "localhost does not take user and password (535)" in said
    assert wrong not in said
    assert wrong not in "".join(record.getMessage() for record in caplog.records if record.name != "mail.log")
    assert smtp.mails == []


def test_a_certificate_that_is_not_trusted_gets_no_password(
    tell: Tell,
    smtp: Post,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    logins: list[Any] = []
    monkeypatch.setattr(smtplib.SMTP, "login", lambda *words: logins.append(words))
    assert tell(reports.good(), mail(smtp.port, tmp_path)) == 4
    assert "certificate verify failed" in capsys.readouterr().err
    assert logins == []


def test_a_mail_server_that_says_nothing(tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        assert tell(reports.good(), mail(silent.getsockname()[1], tmp_path, deadline=0.5)) == 4
        assert time.monotonic() - begin < 10
    assert "the hook 'mail 1' failed" in capsys.readouterr().err


def test_a_pushgateway_gets_metrics_that_prometheus_reads(tell: Tell, web: Web) -> None:
    assert tell(reports.good(), pushgateway=web.url.rstrip("/")) == 0
    ((method, path, _, body),) = web.got
    assert (method, path) == ("PUT", "/metrics/job/sage-image-nightly")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"sage_image_built_timestamp_seconds", "sage_publish_failed", "sage_run_exit_code"} <= names
    web.status = 500
    assert tell(reports.good(), pushgateway=web.url.rstrip("/")) == 4


def test_summary_and_metrics_are_files(tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, summary = tmp_path / "sage.prom", tmp_path / "summary.md"
    for _ in range(2):
        assert tell(reports.good(), metrics=str(metrics), summary=str(summary)) == 0
    assert "sage_run_exit_code" in metrics.read_text()
    assert summary.read_text().count("## sage-image nightly") == 1
    assert tell(reports.good(), metrics=str(tmp_path / "wrong.txt")) == 4
    assert "end in .prom" in capsys.readouterr().err
    assert tell(reports.good(), summary="/proc/no/such") == 4


def test_on_a_workflows_page_the_summary_is_added(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What an earlier step said\n")
    program = (
        "from argparse import Namespace\n"
        "from groundwork.settings import resolve\n"
        "from image_builder import cli, settings\n"
        "from tests.unit.image_builder import reports\n"
        "values = resolve(settings.CREATE_IMAGE, Namespace(), configuration={})\n"
        "raise SystemExit(cli.announce(reports.good(), values, ()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"GITHUB_STEP_SUMMARY": str(page), "PATH": ""}, timeout=60
    )
    assert done.returncode == 0
    assert page.read_text().startswith("# What an earlier step said\n## sage-image nightly: 1 of 1 images new\n")
