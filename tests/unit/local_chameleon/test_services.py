# SPDX-License-Identifier: Apache-2.0
"""Services are known by their command lines; no other process is ever taken for one."""

import os
import socket
from pathlib import Path

import pytest

from groundwork.errors import InputError
from local_chameleon import keystone, services
from local_chameleon.services import Service

STATE = Path("/home/cc/.local/state/chameleon")


def line(*words: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    folder = tmp_path / "keystone"
    keystone.configure(folder)
    return keystone.service(folder, 15000)


def test_a_service_is_known_by_its_command_line(service: Service, tmp_path: Path) -> None:
    words = services.command(service, Path("/env"))
    digest = services.content_digest(service, Path("/env"))
    assert services.parse_command_line(line(*words), tmp_path) == ("keystone", digest)


def test_a_script_is_known_in_the_same_way(tmp_path: Path) -> None:
    folder = tmp_path / "nova-chi_uc"
    folder.mkdir()
    script = Service(folder, 15013, "nova_services.py", {}, probe="/", answers=(200,))
    words = services.command(script, Path("/env"))
    assert words[:2] == ["/env/bin/python", str(services.HOOKS / "nova_services.py")]
    assert services.parse_command_line(line(*words), tmp_path) == (
        "nova-chi_uc",
        services.content_digest(script, Path("/env")),
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"uwsgi",
        line("uwsgi"),
        line("vi", "--set-ph", f"local-chameleon.service={STATE}/keystone"),
        line("uwsgi", "--set-ph", "local-chameleon.content=1", "--set-ph", "local-chameleon.service=/other/keystone"),
        line(
            "uwsgi", "--set-ph", "local-chameleon.content=1", "--set-ph", f"local-chameleon.service={STATE}2/keystone"
        ),
        line("uwsgi", "--set-ph", "local-chameleon.content=1", "--set-ph", f"local-chameleon.service={STATE}"),
        line("grep", f"local-chameleon.service={STATE}/keystone"),
        b"\xff\xfe\0" * 6,
    ],
)
def test_other_command_lines_are_not_ours(raw: bytes) -> None:
    assert services.parse_command_line(raw, STATE) is None


def test_scan_finds_none_where_none_runs(tmp_path: Path) -> None:
    assert services.scan(tmp_path) == []


def test_the_start_time_is_found_whatever_the_name_of_the_process() -> None:
    stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 123456 7 8"
    assert services.parse_stat(stat) == 123456
    assert services.parse_stat(Path(f"/proc/{os.getpid()}/stat").read_text()) > 0


def test_the_digest_follows_the_configuration_and_the_environment(service: Service) -> None:
    first = services.content_digest(service, Path("/env"))
    assert services.content_digest(service, Path("/env")) == first
    assert services.content_digest(service, Path("/env2")) != first
    (service.folder / "service.log").write_text("a log is no configuration")
    assert services.content_digest(service, Path("/env")) == first
    (service.folder / "keystone.conf").write_text("[DEFAULT]\ndebug = true\n")
    assert services.content_digest(service, Path("/env")) != first


def test_a_port_that_is_taken_is_named_with_its_service(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}, which keystone needs") as caught:
            services.require_free([keystone.service(tmp_path / "keystone", port)])
        assert "--port" in str(caught.value.hint)


def test_an_error_shows_the_end_of_the_log(service: Service) -> None:
    assert "its log" not in str(services.failed(service, "ended"))
    service.log.write_text("".join(f"line {number}\n" for number in range(100)))
    text = str(services.failed(service, "ended"))
    assert "line 99" in text
    assert "line 50" not in text
