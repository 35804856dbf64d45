# SPDX-License-Identifier: Apache-2.0
"""beehive.env: checked as a whole before anything is done with it."""

from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.beehive import settings
from virtual_waggle.beehive.settings import Admit


def read(folder: Path, *lines: str) -> settings.Settings:
    path = folder / "beehive.env"
    path.write_text("\n".join(lines) + "\n")
    return settings.read(path)


def test_a_host_is_all_that_must_be_given(tmp_path: Path) -> None:
    found = read(tmp_path, "BEEHIVE_HOST=Beehive.Example.org, 192.0.2.7,2001:DB8::0:1")
    assert found.hosts == ("beehive.example.org", "192.0.2.7", "2001:db8::1")
    assert found.host == "beehive.example.org"
    assert (found.port, found.registration_port, found.upload_port, found.api_port) == (5671, 20022, 20023, 8080)
    assert found.api_url == "http://beehive.example.org:8080"
    assert (found.store, found.retention, found.admit) == ("sqlite", None, Admit.LISTED)


def test_an_address_of_six_stands_in_brackets_in_links(tmp_path: Path) -> None:
    assert read(tmp_path, "BEEHIVE_HOST=::1").api_url == "http://[::1]:8080"


def test_spans_and_sizes_are_read_with_their_units(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "BEEHIVE_HOST=a",
        "BEEHIVE_RETENTION=90d",
        "BEEHIVE_UPLOAD_LARGEST=512M",
        "BEEHIVE_UPLOAD_RETENTION=4w",
    )
    assert found.retention == 90 * 86400 * 10**9
    assert found.upload_largest == 512 << 20
    assert found.upload_retention == 28 * 86400 * 10**9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("BEEHIVE_HOST=-a", "'-a' is neither a host's name nor an address"),
        ("BEEHIVE_HOST=a_b", "'a_b' is neither a host's name nor an address"),
        ("BEEHIVE_HOST=", "expected a name or an address"),
        ("BEEHIVE_PORT=0", "expected a whole number from 1 to 65535"),
        ("BEEHIVE_ADMIT=all", "unknown word 'all'"),
        ("BEEHIVE_RETENTION=soon", "'soon' is no length of time"),
        ("BEEHIVE_STORE=mysql://a/b", "neither sqlite nor"),
        ("BEEHIVE_STORE=postgresql://a", "neither sqlite nor"),
        ("BEEHIVE_STORE=postgresql://a:port/b", "neither sqlite nor"),
        ("BEEHIVE_API_URL=ftp://a", "expected http://host"),
        ("BEEHIVE_UPLOAD_LARGEST=1.5g", "expected a number"),
        ("BEEHIVE_QUEUE_TYPE=stream", "unknown kind of queue"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    lines = [line] if line.startswith("BEEHIVE_HOST") else ["BEEHIVE_HOST=a", line]
    with pytest.raises(InputError) as error:
        read(tmp_path, *lines)
    name = line.partition("=")[0]
    assert str(error.value).startswith(f"{tmp_path}/beehive.env:{len(lines)}: {name}: {message}")


def test_a_stores_password_has_no_place_here_and_is_not_repeated(tmp_path: Path) -> None:
    for url in ("postgres:/u:hushhush@h/d", "postgresql://u:hushhush@h/d", "postgresql://h/d?password=hushhush"):
        with pytest.raises(InputError) as error:
            read(tmp_path, "BEEHIVE_HOST=a", f"BEEHIVE_STORE={url}")
        assert "hushhush" not in str(error.value) + str(error.value.hint)


def test_no_two_services_share_a_port(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BEEHIVE_UPLOAD_PORT and BEEHIVE_REGISTRATION_PORT are both 20022"):
        read(tmp_path, "BEEHIVE_HOST=a", "BEEHIVE_UPLOAD_PORT=20022")


@pytest.mark.parametrize(("text", "hours"), [("", None), ("1h", 1), ("90d", 90 * 24), ("999999w", 999999 * 168)])
def test_a_retention_is_hours_days_or_weeks_or_for_ever(text: str, hours: int | None) -> None:
    assert settings.retention(text) == (None if hours is None else hours * 3600 * 10**9)


@pytest.mark.parametrize("text", ["0d", "-1d", "90", "d", "1y", "90 d", "1.5h", "9999999h", "\uff11d"])
def test_any_other_retention_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no length of time"):
        settings.retention(text)


CLUSTER = (
    "BEEHIVE_HOST=a",
    "BEEHIVE_CLUSTER=a,B,c",
    "BEEHIVE_QUEUE_TYPE=quorum",
    "BEEHIVE_STORE=postgresql://u@h/d",
)


def test_nodes_register_at_the_first_machine_of_a_cluster_alone(tmp_path: Path) -> None:
    assert read(tmp_path, "BEEHIVE_HOST=a").is_first
    found = read(tmp_path, *CLUSTER, "BEEHIVE_MEMBER=a")
    assert (found.cluster, found.is_first) == (("a", "b", "c"), True)
    assert not read(tmp_path, *CLUSTER, "BEEHIVE_MEMBER=B").is_first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b", "expected three machines or more"),
        ("a,b,b", "expected three machines or more"),
        ("a,b,::1", "expected names, or addresses of IPv4"),
        ("a,b,c.example.org", "don't go together"),
    ],
)
def test_machines_that_make_no_cluster_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"beehive.env:2: BEEHIVE_CLUSTER: .*{message}"):
        read(tmp_path, "BEEHIVE_HOST=a", f"BEEHIVE_CLUSTER={text}")


@pytest.mark.parametrize(
    ("without", "line", "message"),
    [
        ("-", "", "BEEHIVE_MEMBER is '', which is none of BEEHIVE_CLUSTER"),
        ("-", "BEEHIVE_MEMBER=d", "BEEHIVE_MEMBER is 'd', which is none of BEEHIVE_CLUSTER"),
        ("BEEHIVE_QUEUE_TYPE", "BEEHIVE_MEMBER=a", "BEEHIVE_QUEUE_TYPE is classic"),
        ("BEEHIVE_STORE", "BEEHIVE_MEMBER=a", "BEEHIVE_STORE is sqlite"),
    ],
)
def test_a_cluster_has_queues_and_a_store_that_outlive_a_machine(
    tmp_path: Path, without: str, line: str, message: str
) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, *(one for one in CLUSTER if not one.startswith(without)), line)
    assert str(error.value).startswith(f"{tmp_path}/beehive.env: {message}")
