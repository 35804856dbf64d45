# SPDX-License-Identifier: Apache-2.0
"""The services' configurations hold what Glance and Keystone need, and nothing others may read."""

import configparser
from pathlib import Path

import pytest
import yaml

from groundwork.errors import InputError
from local_chameleon import configuration, environment, glance, keystone, profiles, seed
from local_chameleon.profiles import PROFILES
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
    import sqlite3

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
    credentials = [Credential("CH-822154", "id1", "secret1"), Credential("CH-000002", "id2", "secret2")]
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


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in environment.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert all("==" in line for line in lines)
    assert "keystone==27.0.2" in lines
