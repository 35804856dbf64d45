# SPDX-License-Identifier: Apache-2.0
"""Networks and floating IPs of profile ``boot``, made real on this machine: what Neutron's agents would do.

Each region's shared network is a bridge with the gateway's address, and a floating IP is an entry of a map that
nftables translates by, with a route to the bridge.  What is to be so is read from Neutron's database, which costs
nothing while it does not change; asking its API each second would take a tenth of a processor.

The service is this module as a program.  What it changes on the host is noted before; ``local-chameleon down`` undoes
it by the note, also after a kill.
"""

import contextlib
import ipaddress
import json
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import yaml

from groundwork import files, process
from groundwork.errors import InputError, SageError
from local_chameleon import health
from local_chameleon.regions import SHARED_NETWORK
from local_chameleon.services import Service

logger = logging.getLogger(__name__)

NAME = "network"

_CONFIG = "regions.yaml"
_MADE = "made.json"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# Where systemd-resolved answers on loopback, its own file names whom it asks.
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_LOOK = 0.3  # seconds between two looks at the databases
_STALE = 10.0  # seconds without a good look after which the service does not work
_PROTOCOL = "111"  # of our routes, by which they are told from others (see rtnetlink(7); below 128 nobody's)
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Wire:
    """A region's shared network: its bridge, which has the gateway's address, and its floating IPs.

    ``floating``: pairs of a floating IP and the fixed one that it is bound to, sorted.
    """

    bridge: str
    gateway: IPv4Interface
    floating: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Made:
    """What was changed on the host.  ``forward`` is what ip_forward said before."""

    forward: str
    bridges: tuple[str, ...] = ()


def require(networks: Sequence[IPv4Network], state_dir: Path) -> None:
    """Raise InputError where programs are missing, or this machine has one of the networks already."""
    process.require("ip", "nft")
    ours = set(_read_made(state_dir / NAME).bridges)
    for row in json.loads(process.run(["ip", "-json", "address"], timeout=_TIMEOUT)):
        for info in row.get("addr_info", []):
            if row["ifname"] in ours or info.get("family") != "inet":
                continue
            other = ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}").network
            for network in networks:
                if other.overlaps(network):
                    raise InputError(
                        f"{row['ifname']} has an address in {network}, a network of profile boot",
                        hint="is it another Chameleon's?  One of profile boot runs on a machine at a time",
                    )


def configure(folder: Path, regions: Mapping[Path, IPv4Network]) -> None:
    """Write its configuration.  ``regions``: Neutron's database of a region -> the region's shared network."""
    text = yaml.safe_dump({str(database): str(network) for database, network in regions.items()})
    files.write_text(folder / _CONFIG, text)


def service(folder: Path, port: int) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="local_chameleon.host_network",
        environ={"LOCAL_CHAMELEON_PORT": str(port)},
        probe="/",
        answers=(200,),
    )


def remove(folder: Path) -> None:
    """Undo all that the service changed on the host; it must have ended, and all machines."""
    made = folder / _MADE
    if not made.exists():
        return
    noted = _read_made(folder)
    _nft(f"table ip {_table(folder)} {{}}\ndelete table ip {_table(folder)}\n")
    there = {row["ifname"] for row in json.loads(process.run(["ip", "-json", "link"], timeout=_TIMEOUT))}
    for bridge in noted.bridges:
        if bridge in there:
            _ip("link", "delete", bridge)  # and its routes with it
    if noted.forward == "0":
        _FORWARD.write_text("0\n")
    made.unlink()


# ---------------------------------------------------------------------------------------------------- what is to be so


def read_wire(database: sqlite3.Connection, network: IPv4Network) -> Wire | None:
    """A region's shared network, as its Neutron has it; None while it is not made."""
    row = database.execute(
        "SELECT n.id, s.gateway_ip FROM networks n JOIN subnets s ON s.network_id = n.id"
        " WHERE n.name = ? AND s.cidr = ?",
        (SHARED_NETWORK, str(network)),
    ).fetchone()
    if row is None:
        return None
    floating = database.execute(
        "SELECT floating_ip_address, fixed_ip_address FROM floatingips WHERE fixed_ip_address IS NOT NULL"
    ).fetchall()
    bound = sorted((one, fixed) for one, fixed in floating if ipaddress.ip_address(fixed) in network)
    return Wire("brq" + row[0][:11], IPv4Interface(f"{row[1]}/{network.prefixlen}"), tuple(bound))


def read_nameserver(*places: Path) -> IPv4Address | None:
    """The first nameserver of these resolv.conf that others than this machine can ask; None where there is none."""
    for path in places:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for match in re.finditer(r"^[ \t]*nameserver[ \t]+(\S+)", text, re.MULTILINE):
            with contextlib.suppress(ValueError):
                found = IPv4Address(match[1])
                if not found.is_loopback:
                    return found
    return None


def rules(table: str, wires: Sequence[Wire], nameserver: IPv4Address | None = None) -> str:
    """The table of nftables, in the place of the last one.

    What machines ask their gateway's port 53, ``nameserver`` answers.  They reach floating IPs, those of their own
    network too, and the world behind this host; the regions' networks reach each other by floating IPs alone, as
    Chameleon's do.
    """
    floating = ", ".join(f"{one} : {fixed}" for wire in wires for one, fixed in wire.floating)
    bridges = ", ".join(f'"{wire.bridge}"' for wire in wires)
    networks = ", ".join(str(wire.gateway.network) for wire in wires)
    elements = f"elements = {{ {floating} }};" if floating else ""
    apart = "".join(
        f'    iifname "{one.bridge}" oifname "{other.bridge}" drop\n'
        for one in wires
        for other in wires
        if one != other
    )
    chains = (
        f"""\
  chain forward {{
    type filter hook forward priority filter;
    ct status dnat accept
    ct state established,related accept
{apart}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname {{ {bridges} }} ct status dnat masquerade
    ip saddr {{ {networks} }} oifname != {{ {bridges} }} masquerade
  }}
"""
        if wires
        else ""
    )
    names = "".join(
        f"    ip daddr {wire.gateway.ip} meta l4proto {{ tcp, udp }} th dport 53 dnat to {nameserver}\n"
        for wire in wires
        if nameserver is not None
    )
    return f"""\
table ip {table} {{}}
delete table ip {table}
table ip {table} {{
  map floating {{
    type ipv4_addr : ipv4_addr;
    {elements}
  }}
  chain output {{
    type nat hook output priority -100;
    dnat to ip daddr map @floating
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
{names}    dnat to ip daddr map @floating
  }}
{chains}}}
"""


# ------------------------------------------------------------------------------------------------------- making it so


def make(folder: Path, wires: Sequence[Wire]) -> None:
    """Make bridges, rules and routes so.  What is changed on the host for longer is noted before."""
    noted = _read_made(folder)
    bridges = tuple(sorted({*noted.bridges, *(wire.bridge for wire in wires)}))
    if bridges != noted.bridges or not (folder / _MADE).exists():
        files.write_text(folder / _MADE, json.dumps({"forward": noted.forward, "bridges": bridges}))
    if _FORWARD.read_text().strip() != "1":
        _FORWARD.write_text("1\n")
    there = {row["ifname"] for row in json.loads(process.run(["ip", "-json", "link"], timeout=_TIMEOUT))}
    for wire in wires:
        if wire.bridge not in there:
            _ip("link", "add", wire.bridge, "type", "bridge")
        _ip("link", "set", wire.bridge, "up")
        _ip("address", "replace", str(wire.gateway), "dev", wire.bridge)
    _nft(rules(_table(folder), wires, read_nameserver(*_RESOLV_CONF)))
    for wire in wires:
        listed = process.run(["ip", "-json", "route", "show", "proto", _PROTOCOL, "dev", wire.bridge], timeout=_TIMEOUT)
        standing = {row["dst"] for row in json.loads(listed or "[]")}
        wanted = {one for one, _ in wire.floating}
        for one in sorted(wanted - standing):
            _ip("route", "replace", f"{one}/32", "dev", wire.bridge, "proto", _PROTOCOL)
        for one in sorted(standing - wanted):
            _ip("route", "delete", one, "dev", wire.bridge, "proto", _PROTOCOL)


def main() -> None:
    """Look at the databases for ever, and make it so as they say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    folder = Path.cwd()
    networks = {
        Path(database): IPv4Network(text) for database, text in yaml.safe_load((folder / _CONFIG).read_text()).items()
    }
    good = [time.monotonic() - _STALE]
    health.serve(int(os.environ["LOCAL_CHAMELEON_PORT"]), lambda: time.monotonic() - good[0] < _STALE)
    databases = {path: sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) for path in networks}
    versions: dict[Path, int] = {}
    while True:
        try:
            now = {path: int(one.execute("PRAGMA data_version").fetchone()[0]) for path, one in databases.items()}
            if now != versions:
                wires = [read_wire(databases[path], network) for path, network in networks.items()]
                make(folder, [wire for wire in wires if wire is not None])
                versions = now
            good[0] = time.monotonic()
        except (SageError, OSError, sqlite3.Error) as error:
            logger.warning("tried again: %s", error)
            versions = {}
        time.sleep(_LOOK)


def _read_made(folder: Path) -> _Made:
    try:
        found = json.loads((folder / _MADE).read_text())
    except FileNotFoundError:
        return _Made(_FORWARD.read_text().strip())
    return _Made(found["forward"], tuple(found["bridges"]))


def _table(folder: Path) -> str:
    """The name of the table, another for each state folder."""
    return "local_chameleon_" + files.digest_text(str(folder.parent))[:8]


def _ip(*words: str) -> None:
    process.run(["ip", *words], timeout=_TIMEOUT)


def _nft(text: str) -> None:
    process.run(["nft", "--file", "-"], input=text.encode(), timeout=_TIMEOUT)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
