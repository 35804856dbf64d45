# SPDX-License-Identifier: Apache-2.0
"""Config drives as OpenStack makes them: their documents, and the forms in which a machine finds them.

Documents: https://docs.openstack.org/nova/latest/user/metadata.html.  Forms: Ironic writes an ISO 9660 image into a
partition at the end of a bare-metal node's disk (``ironic_python_agent/partition_utils.py``, which takes 64 MiB);
Nova gives a virtual machine a disk of its own, here vfat.  Both are labelled ``config-2``.
"""

import base64
import hashlib
import io
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import process

PROGRAMS = ("mkfs.vfat", "mmd", "mcopy", "qemu-img", "sfdisk")

_MIB = 1 << 20
_SECTOR = 512
_PARTITION_SIZE = 64 * _MIB
# Nova gives each document once a version; this is the newest that cloud-init asks for, of OpenStack's Rocky.
_VERSIONS = ("2018-08-27", "latest")
_LABEL = "config-2"


@dataclass(frozen=True)
class Instance:
    """What a site tells a machine of itself.

    ``vendor_data2`` is None at a site without dynamic vendor data, ``user_data`` where the user gave none.
    """

    metadata: dict[str, Any]
    network: dict[str, Any]
    user_data: str | None
    vendor_data2: dict[str, Any] | None

    def documents(self) -> dict[str, bytes]:
        """Each document by its path, below a config drive's top or the metadata service's."""
        documents = {
            "meta_data.json": json.dumps(self.metadata).encode(),
            "network_data.json": json.dumps(self.network).encode(),
            "vendor_data.json": b"{}",
        }
        if self.vendor_data2 is not None:
            documents["vendor_data2.json"] = json.dumps(self.vendor_data2).encode()
        if self.user_data is not None:
            documents["user_data"] = self.user_data.encode()
        return {f"openstack/{version}/{name}": text for version in _VERSIONS for name, text in documents.items()}


# What a check finds when the user's data was run, at each of its two times.
_USER_DATA = """\
#cloud-config
write_files:
  - path: /run/sage-verify/written
    content: by user data
runcmd:
  - [cp, /run/sage-verify/written, /run/sage-verify/run]
"""

# QEMU's user network: this machine's address, its gateway and name server.
_ANYWHERE = "0.0.0.0"  # noqa: S104 - the default route
_ADDRESS, _GATEWAY, _NAME_SERVER = "10.0.2.15", "10.0.2.2", "10.0.2.3"


def of_bare_metal(public_key: str, mac: str) -> Instance:
    """A bare-metal node's, with a fixed address, user data, and Chameleon's vendor data as it is since June 2026."""
    name = "sage-verify-node"
    link = "tap5d4b4d1e-2f"
    network = {
        "links": [{"id": link, "vif_id": _identifier("port"), "type": "phy", "ethernet_mac_address": mac, "mtu": 1450}],
        "networks": [
            {
                "id": "network0",
                "type": "ipv4",
                "link": link,
                "network_id": _identifier("network"),
                "ip_address": _ADDRESS,
                "netmask": "255.255.255.0",
                "routes": [{"network": _ANYWHERE, "netmask": _ANYWHERE, "gateway": _GATEWAY}],
                "services": [{"type": "dns", "address": _NAME_SERVER}],
            }
        ],
        "services": [{"type": "dns", "address": _NAME_SERVER}],
    }
    chameleon = {
        "node": _identifier("node"),
        "region": "CHI@UC",
        "lease_id": _identifier("lease"),
        "lease_start": "2026-11-20 09:00:00",
        "lease_end": "2026-11-27 09:00:00",
        "auth_url": "https://chi.uc.chameleoncloud.org:5000/v3",
        "project_id": _identifier("project").replace("-", ""),
        "ssh_keypairs": {"sage-verify": public_key},
    }
    return Instance(_metadata(name, public_key), network, _USER_DATA, {"chameleon": chameleon})


def of_virtual_machine(public_key: str, mac: str) -> Instance:
    """A virtual machine's, with DHCP, without user data, and with nothing of Chameleon's."""
    network = {
        "links": [{"id": "tap0", "vif_id": _identifier("port"), "type": "ovs", "ethernet_mac_address": mac}],
        "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tap0", "network_id": _identifier("network")}],
        "services": [],
    }
    return Instance(_metadata("sage-verify-vm", public_key), network, None, None)


def write_disk(instance: Instance, path: Path) -> None:
    """Write a vfat disk, as Nova does with ``config_drive_format=vfat``."""
    with path.open("wb") as stream:
        stream.truncate(64 * _MIB)
    process.run(["mkfs.vfat", "-n", _LABEL, path], timeout=60)
    env = {"MTOOLS_SKIP_CHECK": "1"}
    documents = instance.documents()
    folders = sorted({str(parent) for name in documents for parent in Path(name).parents if parent.name})
    process.run(["mmd", "-i", path, *(f"::/{folder}" for folder in folders)], env=env, timeout=60)
    for name, text in documents.items():
        process.run(["mcopy", "-i", path, "-", f"::/{name}"], input=text, env=env, timeout=60)


def write_last_partition(instance: Instance, disk: Path, size: int, scratch: Path) -> None:
    """Write an ISO 9660 image into a new partition at the end of ``disk``, a qcow2 file of ``size`` bytes.

    Two files are left in ``scratch``.
    """
    image = scratch / "config-drive.iso"
    image.write_bytes(iso(instance))
    table = scratch / "partition-table"
    process.run(["qemu-img", "convert", "--image-opts", _window(disk, 0, _MIB), "-O", "raw", table], timeout=60)
    with table.open("r+b") as stream:
        stream.truncate(size)
    start = (size - _PARTITION_SIZE) // _MIB * _MIB - _MIB  # the second GPT follows
    row = f'start={start // _SECTOR}, size={_PARTITION_SIZE // _SECTOR}, type=L, name="{_LABEL}"'
    process.run(["sfdisk", "--quiet", "--relocate", "gpt-bak-std", table], timeout=60)
    options = ["--quiet", "--append", "--no-reread", "--no-tell-kernel"]
    process.run(["sfdisk", *options, table], input=row.encode(), timeout=60)
    for source, offset, target, length in (
        (table, 0, 0, _MIB),
        (table, size - _MIB, size - _MIB, _MIB),
        (image, 0, start, image.stat().st_size),
    ):
        source_window = f"driver=raw,offset={offset},size={length},file.driver=file,file.filename={quoted(source)}"
        words = ["--image-opts", source_window, "--target-image-opts", _window(disk, target, length)]
        process.run(["qemu-img", "convert", "-n", *words], timeout=60)


def quoted(path: Path) -> str:
    """A path as QEMU wants it among its options."""
    return str(path).replace(",", ",,")


def _window(disk: Path, offset: int, length: int) -> str:
    """A part of a qcow2 disk, as QEMU's raw driver shows it."""
    inner = f"file.driver=qcow2,file.file.driver=file,file.file.filename={quoted(disk)}"
    return f"driver=raw,offset={offset},size={length},{inner}"


def iso(instance: Instance) -> bytes:
    """An ISO 9660 image with Rock Ridge and Joliet names, as Nova has genisoimage make it."""
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(vol_ident=_LABEL, joliet=3, rock_ridge="1.09")
    short: dict[str, str] = {"": ""}  # a path -> the same in ISO 9660's eight letters
    for name, text in sorted(instance.documents().items()):
        folders = [str(folder) for folder in reversed(Path(name).parents) if folder.name]
        for folder in folders:
            if folder not in short:
                short[folder] = _short(folder, short)
                image.add_directory(short[folder], rr_name=Path(folder).name, joliet_path=f"/{folder}")
        place = _short(name, short) + ".;1"
        image.add_fp(io.BytesIO(text), len(text), place, rr_name=Path(name).name, joliet_path=f"/{name}")
    written = io.BytesIO()
    image.write_fp(written)
    image.close()
    return written.getvalue()


def _short(path: str, short: dict[str, str]) -> str:
    parent = str(Path(path).parent)
    letters = hashlib.sha256(Path(path).name.encode()).hexdigest()[:8].upper()
    return f"{short['' if parent == '.' else parent]}/{letters}"


def _metadata(name: str, public_key: str) -> dict[str, Any]:
    return {
        "uuid": str(uuid.uuid4()),  # by it cloud-init knows that this is a first boot
        "name": name,
        "hostname": f"{name}.novalocal",
        "launch_index": 0,
        "availability_zone": "nova",
        "project_id": _identifier("project").replace("-", ""),
        "public_keys": {"sage-verify": public_key},
        "keys": [{"name": "sage-verify", "type": "ssh", "data": public_key}],
        "random_seed": base64.b64encode(uuid.uuid4().bytes * 32).decode(),
        "devices": [],
    }


def _identifier(of: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{of}.sage-verify.invalid"))
