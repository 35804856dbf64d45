# SPDX-License-Identifier: Apache-2.0
"""The services' configurations hold what Glance and Keystone need, and nothing others may read."""

import configparser
import contextlib
import sqlite3
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundwork.errors import InputError, SageError
from local_chameleon import (
    blazar,
    configuration,
    environment,
    glance,
    hypervisor,
    keystone,
    neutron,
    nova,
    profiles,
    seed,
)
from local_chameleon.profiles import PROFILES, Profile
from local_chameleon.regions import REGIONS, Region
from local_chameleon.seed import Credential

IMAGES = PROFILES["images"]


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    return parser


def configure_glance(folder: Path, *, allow_public: bool = False) -> configparser.ConfigParser:
    glance.configure(
        folder,
        Path("/env"),
        keystone_port=15000,
        port=15021,
        region="CHI@TACC",
        password="word",
        allow_public=allow_public,
    )
    return read(folder / "glance-api.conf")


def test_glance_asks_the_keystone_of_its_own_region(tmp_path: Path) -> None:
    asked = configure_glance(tmp_path)["keystone_authtoken"]
    assert asked["region_name"] == "CHI@TACC"
    assert asked["auth_url"] == "http://127.0.0.1:15000/v3"
    assert asked["password"] == "word"


def test_configurations_with_passwords_are_private(tmp_path: Path) -> None:
    configure_glance(tmp_path)
    assert (tmp_path / "glance-api.conf").stat().st_mode & 0o777 == 0o600


def test_lists_stand_in_brackets(tmp_path: Path) -> None:
    assert configure_glance(tmp_path)["DEFAULT"]["enabled_import_methods"].startswith("[")


def test_policies_are_stock_unless_public_images_are_allowed(tmp_path: Path) -> None:
    configure_glance(tmp_path)
    assert yaml.safe_load((tmp_path / "policy.yaml").read_text()) == {}
    configure_glance(tmp_path, allow_public=True)
    assert list(yaml.safe_load((tmp_path / "policy.yaml").read_text())) == ["publicize_image"]


def test_keystone_gets_keys_that_only_it_can_read(tmp_path: Path) -> None:
    keystone.make_keys(tmp_path)
    for name in ("fernet-keys", "credential-keys"):
        keys = sorted((tmp_path / name).iterdir())
        assert [key.name for key in keys] == ["0", "1"]
        assert all(key.stat().st_mode & 0o777 == 0o600 and len(key.read_text()) == 44 for key in keys)
    assert (tmp_path / "fernet-keys/0").read_text() != (tmp_path / "fernet-keys/1").read_text()


@pytest.mark.parametrize("name", ["a$b", "a%b", "a b", "a:b", "a?b", "a#b", "ä", "a\nb", "a;b"])
def test_folders_that_would_be_misread_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="can't work in"):
        configuration.require_plain(Path("/srv") / name)


def test_usual_folders_are_accepted() -> None:
    configuration.require_plain(Path("/home/j.doe-2/.local/state/sage_1"))


def test_a_database_is_switched_to_write_ahead_logging(tmp_path: Path) -> None:
    configuration.prepare_database(tmp_path / "some.db")
    connection = sqlite3.connect(tmp_path / "some.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_all_ports_are_different_and_among_those_that_are_told() -> None:
    services = ("image", "placement", "compute", "network", "reservation", "baremetal")
    ports = [15000] + [
        profiles.service_port(15000, IMAGES, region, service) for region in IMAGES.regions for service in services
    ]
    assert len(set(ports)) == len(ports)
    assert max(ports) < 15000 + profiles.PORTS


def test_clouds_have_an_entry_for_each_region_project_and_the_administrator() -> None:
    credentials = [Credential("", "id1", "secret1"), Credential("_2", "id2", "secret2")]
    entries = seed.clouds(15000, IMAGES, admin_password="word", credentials=credentials)["clouds"]
    slugs = ("chi_uc", "chi_tacc", "kvm_tacc")
    assert set(entries) == {name for slug in slugs for name in (slug, f"{slug}_2", f"admin_{slug}")}
    assert entries["chi_tacc"]["region_name"] == "CHI@TACC"
    assert entries["chi_tacc"]["auth_type"] == "v3applicationcredential"
    assert entries["kvm_tacc_2"]["auth"]["application_credential_id"] == "id2"
    assert all(entry["auth"]["auth_url"] == "http://127.0.0.1:15000/v3" for entry in entries.values())


def test_the_environment_is_keyed_by_its_requirements() -> None:
    assert environment.digest("a==1\n") == environment.digest("a==1\n")
    assert environment.digest("a==1\n") != environment.digest("a==2\n")


def test_an_environment_counts_only_once_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    assert not environment.usable(tmp_path)
    (tmp_path / "complete").touch()
    assert environment.usable(tmp_path)
    (tmp_path / "bin/python").unlink()
    assert not environment.usable(tmp_path)


def test_missing_headers_are_told_with_their_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Python\.h") as caught:
        environment.require_compiler(tmp_path)
    assert "apt-get install" in str(caught.value.hint)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_requirement_is_pinned(profile: profiles.Profile) -> None:
    lines = [line for line in profile.requirements_file.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert all("==" in line for line in lines)
    assert "keystone==27.0.2" in lines


def test_profiles_share_the_versions_of_what_they_share() -> None:
    first, second = (
        dict(
            line.partition(" ;")[0].split("==")
            for line in PROFILES[name].requirements_file.read_text().splitlines()
            if "==" in line
        )
        for name in ("images", "lease")
    )
    assert set(first) <= set(second)
    assert {name: version for name, version in second.items() if name in first} == first


def test_a_restricted_credential_has_entries_of_its_own() -> None:
    entries = seed.clouds(
        15000, PROFILES["lease"], admin_password="word", credentials=[Credential("_restricted", "id3", "secret3")]
    )["clouds"]
    assert entries["chi_uc_restricted"]["auth"]["application_credential_id"] == "id3"
    assert entries["kvm_tacc_restricted"]["region_name"] == "KVM@TACC"


def configure_regional(
    module: Any, folder: Path, region: str, name: str, profile: Profile = PROFILES["lease"]
) -> configparser.RawConfigParser:
    more = {"profile": profile} if module is nova else {}
    module.configure(folder, Path("/env"), keystone_port=15000, port=15013, region=region, password="word", **more)
    parser = configparser.RawConfigParser(strict=False)  # some options are given more than once
    parser.read(folder / name)
    return parser


def test_hosts_of_bare_metal_and_of_virtual_machines_have_different_drivers(tmp_path: Path) -> None:
    for region, driver in (("CHI@UC", "fake.BareMetal"), ("KVM@TACC", "fake.VirtualMachines")):
        read = configure_regional(nova, tmp_path, region, "nova.conf")
        assert read["DEFAULT"]["compute_driver"] == driver
        assert read["placement"]["region_name"] == region
        assert "BlazarFilter" in read["filter_scheduler"]["enabled_filters"]
    assert len((tmp_path / "compute_id").read_text()) == 36


def test_a_compute_runs_for_each_host(tmp_path: Path) -> None:
    configure_regional(nova, tmp_path, "CHI@TACC", "nova.conf")
    named = nova.service(tmp_path, 15013, "CHI@TACC").environ["LOCAL_CHAMELEON_HOSTS"]
    hosts = yaml.safe_load(Path(named).read_text())
    assert hosts["compute-arm64-01"] == "aarch64"
    assert len(hosts) == len(REGIONS["CHI@TACC"].hosts)


def test_servers_of_the_boot_profile_are_machines_of_its_own_libvirt(tmp_path: Path) -> None:
    read = configure_regional(nova, tmp_path / "nova-chi_uc", "CHI@UC", "nova.conf", PROFILES["boot"])
    assert read["DEFAULT"]["compute_driver"] == "libvirt.Machines"
    assert read["DEFAULT"]["force_config_drive"] == "true"
    assert read["DEFAULT"]["instance_name_template"] == "chi_uc-%08x"
    socket = read["libvirt"]["connection_uri"].partition("?socket=")[2]
    assert Path(socket) == hypervisor.socket_path(tmp_path / "qemu")
    assert "libvirt" not in configure_regional(nova, tmp_path / "fake", "CHI@UC", "nova.conf")


def test_bare_metal_is_lent_for_seven_days_at_most_and_virtual_machines_by_flavor(tmp_path: Path) -> None:
    read = configure_regional(blazar, tmp_path, "CHI@UC", "blazar.conf")
    assert read["enforcement"]["max_lease_duration"] == "604800"
    assert "flavor.instance.plugin" not in read["manager"]["plugins"]
    read = configure_regional(blazar, tmp_path, "KVM@TACC", "blazar.conf")
    assert "max_lease_duration" not in read["enforcement"]
    assert "flavor.instance.plugin" in read["manager"]["plugins"].split(",")
    assert "blazar:oshosts:get" in yaml.safe_load((tmp_path / "policy.yaml").read_text())


def test_a_neutron_database_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "neutron.db").touch()
    with pytest.raises(SageError, match="another version") as caught:
        neutron.sync_databases(tmp_path, Path("/env"))
    assert "--purge" in str(caught.value.hint)


def test_cells_lie_where_the_state_lies(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "nova_api.db")) as connection:
        connection.execute("CREATE TABLE cell_mappings (uuid, name, transport_url, database_connection, disabled)")
        nova.map_cells(tmp_path)
        made = connection.execute("SELECT uuid, name FROM cell_mappings").fetchall()
        connection.execute("UPDATE cell_mappings SET database_connection = 'sqlite:////elsewhere'")
        connection.commit()
        nova.map_cells(tmp_path)
        assert connection.execute("SELECT uuid, name FROM cell_mappings").fetchall() == made
        rows = connection.execute("SELECT name, database_connection FROM cell_mappings ORDER BY name").fetchall()
    assert rows == [(name, f"sqlite:///{tmp_path}/nova_{name}.db?timeout=30") for name in ("cell0", "cell1")]


def test_regions_have_hosts_of_several_types_and_addresses_of_their_own() -> None:
    types = {name: {host.node_type for host in region.hosts} for name, region in REGIONS.items()}
    assert "compute_arm64" in types["CHI@TACC"]
    assert "compute_skylake" in types["CHI@UC"] & types["CHI@TACC"]
    assert sum(host.node_type == "compute_skylake" for host in REGIONS["CHI@UC"].hosts) == 10
    networks = [network for region in REGIONS.values() for network in (region.shared, region.public)]
    assert not any(one.overlaps(other) for one in networks for other in networks if one is not other)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_what_blazar_lends_neutron_does_not_give_out(region: Region) -> None:
    first, last = (IPv4Address(address) for address in region.pool)
    assert first < last
    assert {first, last} <= set(region.public)
    assert not any(first <= IPv4Address(address) <= last for address in region.leased_addresses)
    assert len({host.name for host in region.hosts}) == len(region.hosts)
    assert not any("_" in host.name for host in region.hosts)
