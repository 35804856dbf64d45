# SPDX-License-Identifier: Apache-2.0
"""What Neutron's database says of networks and floating IPs becomes rules of nftables."""

import sqlite3
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from local_chameleon import host_network
from local_chameleon.host_network import Wire

NETWORK = IPv4Network("10.140.80.0/22")
UC = Wire("brq0011", IPv4Interface("10.140.80.1/22"), (("192.0.2.10", "10.140.80.7"), ("192.0.2.11", "10.140.81.8")))
TACC = Wire("brq0022", IPv4Interface("10.52.0.1/22"))


@pytest.fixture
def database() -> sqlite3.Connection:
    """Neutron's tables, as far as they are read."""
    made = sqlite3.connect(":memory:")
    made.executescript(
        """
        CREATE TABLE networks (id, name);
        CREATE TABLE subnets (network_id, cidr, gateway_ip);
        CREATE TABLE floatingips (floating_ip_address, fixed_ip_address);
        """
    )
    return made


def test_before_a_region_is_filled_there_is_nothing_to_make(database: sqlite3.Connection) -> None:
    assert host_network.read_wire(database, NETWORK) is None


def test_the_shared_network_and_what_is_bound_in_it(database: sqlite3.Connection) -> None:
    database.executescript(
        """
        INSERT INTO networks VALUES ('246cf921-6b00-4000-8000-1234', 'sharednet1'), ('other', 'mine');
        INSERT INTO subnets VALUES ('246cf921-6b00-4000-8000-1234', '10.140.80.0/22', '10.140.80.1');
        INSERT INTO subnets VALUES ('other', '10.255.0.0/24', '10.255.0.1');
        INSERT INTO floatingips VALUES ('192.0.2.11', '10.140.81.8'), ('192.0.2.10', '10.140.80.7');
        INSERT INTO floatingips VALUES ('192.0.2.12', NULL), ('192.0.2.13', '10.255.0.5');
        """
    )
    wire = host_network.read_wire(database, NETWORK)
    assert wire == Wire("brq246cf921-6b", UC.gateway, UC.floating)
    assert len(wire.bridge) < 16, "the kernel's longest name"


def test_floating_ips_are_translated_and_networks_kept_apart() -> None:
    text = host_network.rules("ours", [UC, TACC])
    assert "elements = { 192.0.2.10 : 10.140.80.7, 192.0.2.11 : 10.140.81.8 };" in text
    assert 'iifname "brq0011" oifname "brq0022" drop' in text
    assert 'iifname "brq0022" oifname "brq0011" drop' in text
    assert 'iifname "brq0011" oifname "brq0011" drop' not in text
    assert text.startswith("table ip ours {}\ndelete table ip ours\ntable ip ours {\n")


def test_rules_of_nothing_are_rules() -> None:
    text = host_network.rules("ours", [])
    assert "elements" not in text
    assert "postrouting" not in text
    assert text.count("{") == text.count("}")


def test_what_machines_ask_their_gateway_this_hosts_nameserver_answers() -> None:
    text = host_network.rules("ours", [UC, TACC], IPv4Address("192.0.2.53"))
    for wire in (UC, TACC):
        assert f"ip daddr {wire.gateway.ip} meta l4proto {{ tcp, udp }} th dport 53 dnat to 192.0.2.53\n" in text
    assert text.index("dport 53") < text.index("dnat to ip daddr map @floating\n  }\n  chain forward")


@pytest.mark.parametrize(
    ("own", "resolved", "found"),
    [
        ("search .\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n", "", "192.0.2.1"),
        ("nameserver 127.0.0.53\n", "nameserver fe80::1%eth0\nnameserver 192.0.2.3\n", "192.0.2.3"),
        ("nameserver 127.0.0.1\nnameserver\n", "", None),
    ],
)
def test_a_nameserver_that_machines_can_ask(tmp_path: Path, own: str, resolved: str, found: str | None) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "resolved").write_text(resolved)
    asked = host_network.read_nameserver(tmp_path / "own", tmp_path / "absent", tmp_path / "resolved")
    assert asked == (IPv4Address(found) if found else None)
