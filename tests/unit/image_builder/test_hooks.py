# SPDX-License-Identifier: Apache-2.0
"""What a file of hooks may say, and what is wrong with it: file, line and key.  Calling them is an integration test."""

import json
from pathlib import Path

import pytest

from groundwork.errors import InputError
from image_builder import hooks
from image_builder.hooks import Command, Form, Mail, Security, Webhook, When
from image_builder.report import RunReport
from tests.unit.image_builder import reports

SECRET = "hunter2-open-sesame"


def load(folder: Path, text: str) -> tuple[hooks.Hook, ...]:
    (folder / "hooks.yaml").write_text(text)
    return hooks.load(folder / "hooks.yaml")


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def test_a_whole_file(tmp_path: Path, password: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_TEST_URL", "https://hooks.example.org/T0/B0/" + SECRET)
    command, webhook, mail = load(
        tmp_path,
        "hooks:\n"
        "- {name: log, command: [logger, -t, sage]}\n"
        "- {when: changed, deadline: 5, webhook: {url: {variable: SAGE_TEST_URL}, form: slack}}\n"
        "- when: failed\n"
        "  mail: {server: smtp.example.org, user: sage, from: sage@example.org, to: [ops@example.org],\n"
        f"    password: {{file: {password}}}}}\n",
    )
    assert (command.name, command.when, command.deadline) == ("log", When.ALWAYS, 30.0)
    assert command.action == Command(("logger", "-t", "sage"))
    assert (webhook.name, webhook.when, webhook.deadline) == ("webhook 2", When.CHANGED, 5.0)
    assert webhook.action == Webhook("https://hooks.example.org/T0/B0/" + SECRET, Form.SLACK, None)
    assert isinstance(mail.action, Mail)
    assert (mail.action.port, mail.action.security) == (587, Security.STARTTLS)
    assert mail.action.password == SECRET
    assert SECRET not in repr((command, webhook, mail)), "a secret is in no text of it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hook: []\n", "hooks.yaml:1: hook: unknown key"),
        ("hooks:\n- {name: x}\n", "hooks.yaml:2: hooks[0]: a hook has one of the keys command, webhook and mail"),
        ("hooks:\n- {command: [a], webhook: {url: 'http://x'}}\n", "hooks.yaml:2: hooks[0]: a hook has one of"),
        ("hooks:\n- command: ls\n", "hooks.yaml:2: hooks[0].command: expected a list, found 'ls'"),
        ("hooks:\n- command: [ls]\n  when: sometimes\n", "hooks.yaml:3: hooks[0].when: 'sometimes' is none of"),
        ("hooks:\n- webhook:\n    url: ftp://x\n", "hooks.yaml:3: hooks[0].webhook.url"),
        (
            "hooks:\n- webhook:\n    url: {variable: NO_SUCH}\n",
            "hooks.yaml:3: hooks[0].webhook.url: the environment has no variable NO_SUCH",
        ),
        (
            "hooks:\n- webhook: {url: 'http://example.org/x', token: {variable: HOME}}\n",
            "hooks[0].webhook.token: a token is not sent by plain http",
        ),
        ("hooks:\n- mail: {server: x, from: a@b}\n", "hooks.yaml:2: hooks[0].mail: the key 'to' is missing"),
        ("hooks:\n- mail: {server: x, from: a, to: [b@c]}\n", "hooks[0].mail.from: 'a' does not match"),
        ("hooks:\n- mail: {server: x, from: a@b, to: [b@c], user: u}\n", "user and password go together"),
        (
            "hooks:\n- mail: {server: x, from: a@b, to: [b@c], user: u, password: p}\n",
            "hooks[0].mail.password: expected a mapping",
        ),
        (
            "hooks:\n- mail: {server: x, from: a@b, to: [b@c], user: u, password: {variable: HOME}, security: none}\n",
            "hooks[0].mail.security: a password is not sent without TLS",
        ),
        (
            "hooks:\n- mail: {server: x, from: a@b, to: [b@c], user: u, password: {file: /nowhere}}\n",
            "hooks[0].mail.password: can't read /nowhere",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_password_that_others_can_read_is_refused(tmp_path: Path, password: Path, mode: int) -> None:
    password.chmod(mode)
    with pytest.raises(InputError, match="can be read by others") as caught:
        load(
            tmp_path,
            f"hooks:\n- mail: {{server: x, from: a@b, to: [b@c], user: u, password: {{file: {password}}}}}\n",
        )
    assert caught.value.hint == f"chmod 600 {password}"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("when", "called"),
    [("always", (True, True, True)), ("changed", (True, False, True)), ("failed", (False, False, True))],
)
def test_after_which_runs_a_hook_is_called(when: str, called: tuple[bool, ...]) -> None:
    made = (reports.good(), reports.unchanged(), reports.mixed())
    assert tuple(hooks._is_wanted(When(when), report) for report in made) == called


@pytest.mark.parametrize("made", [reports.good(), reports.mixed()])
def test_slack_gets_a_message_within_its_limits(made: RunReport) -> None:
    many = reports.run(*(reports.image(f"<image> & {number}") for number in range(300)))
    for report in (made, many):
        message = json.loads(json.dumps(hooks.slack(report)))
        assert message["text"].startswith("sage-image nightly: ")
        for block in message["blocks"]:
            assert block["type"] == "section"
            assert 0 < len(block["text"]["text"]) <= 3000
    assert "<" not in str(hooks.slack(many)), "what a name holds is no markup of Slack's"
