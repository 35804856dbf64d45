# SPDX-License-Identifier: Apache-2.0
"""What a machine shows the image: whom it plays, and the config drive that it brings."""

import io
import json
from pathlib import Path

import pycdlib
import pytest

from image_builder import config_drive, hardware, machine
from image_builder.config_drive import Instance
from image_builder.hardware import Firmware, Guise
from image_builder.machine import LoginKey
from image_builder.variant import Arch

KEY = LoginKey("private", "ssh-ed25519 AAAA verify")
CREDENTIALS = ("application_credential", "openrc", "password", "secret", "token")


def test_two_boots_show_both_kinds_of_site_and_a_lone_one_bare_metal() -> None:
    assert {hardware.guise(firmware) for firmware in machine.firmwares(Arch.AMD64)} == set(Guise)
    assert [hardware.guise(firmware) for firmware in machine.firmwares(Arch.ARM64)] == [Guise.BARE_METAL]


def test_bare_metal_hides_the_hypervisor(tmp_path: Path) -> None:
    real = hardware.devices(Guise.BARE_METAL, Arch.AMD64, tmp_path)
    words = " ".join([real.processor, *real.disk, *real.network, *real.others])
    assert ",-hypervisor" in words
    assert "virtio" not in words
    assert "QEMU" not in words
    # systemd-detect-virt reads this bit of SMBIOS's structure 0, where QEMU and OVMF set it
    structure = (tmp_path / "smbios-type-0").read_bytes()
    assert structure[0] == 0
    assert structure[1] == 24
    assert not structure[0x13] & 1 << 4
    assert structure[24:].startswith(b"Dell Inc.\0")
    assert structure.endswith(b"\0\0")


def test_a_virtual_machine_is_nova_s(tmp_path: Path) -> None:
    made = hardware.devices(Guise.VIRTUAL, Arch.AMD64, tmp_path)
    assert made.processor == ""
    assert any("product=OpenStack Nova" in word for word in made.others)


@pytest.mark.parametrize("firmware", list(Firmware))
def test_what_a_machine_is_told_is_whole(firmware: Firmware) -> None:
    instance = machine.usual_site(firmware, KEY).instance
    assert instance is not None
    assert instance.metadata["public_keys"] == {"sage-verify": KEY.public}
    (link,) = instance.network["links"]
    (network,) = instance.network["networks"]
    assert link["ethernet_mac_address"] == hardware.MAC
    assert network["link"] == link["id"]
    documents = instance.documents()
    for version in ("latest", "2018-08-27"):
        assert json.loads(documents[f"openstack/{version}/meta_data.json"]) == instance.metadata


def test_only_the_bare_metal_node_has_a_fixed_address_user_data_and_vendor_data() -> None:
    node = config_drive.of_bare_metal(KEY.public, hardware.MAC)
    assert node.network["networks"][0]["type"] == "ipv4"
    assert node.user_data is not None
    assert node.vendor_data2 is not None
    told = node.vendor_data2["chameleon"]
    assert set(told) == {
        *("node", "region", "lease_id", "lease_start", "lease_end", "auth_url", "project_id", "ssh_keypairs")
    }
    assert not [key for key in told for word in CREDENTIALS if word in key]
    other = config_drive.of_virtual_machine(KEY.public, hardware.MAC)
    assert other.network["networks"][0]["type"] == "ipv4_dhcp"
    assert (other.user_data, other.vendor_data2) == (None, None)
    assert not [name for name in other.documents() if "user_data" in name or "vendor_data2" in name]


def test_the_image_of_a_config_drive_has_each_document_under_its_name() -> None:
    node = config_drive.of_bare_metal(KEY.public, hardware.MAC)
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(config_drive.iso(node)))
    assert image.pvd.volume_identifier.rstrip() == b"config-2"
    for name, text in node.documents().items():
        for place in ({"rr_path": f"/{name}"}, {"joliet_path": f"/{name}"}):
            written = io.BytesIO()
            image.get_file_from_iso_fp(written, **place)
            assert written.getvalue() == text
    image.close()


def test_two_instances_are_two() -> None:
    one, other = (config_drive.of_virtual_machine(KEY.public, hardware.MAC) for _ in range(2))
    assert one.metadata["uuid"] != other.metadata["uuid"]
    assert isinstance(one, Instance)
