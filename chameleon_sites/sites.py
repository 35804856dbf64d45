# SPDX-License-Identifier: Apache-2.0
"""The table of sites: the one that comes along, and the user's changes to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from groundwork import documents
from groundwork.compat import StrEnum
from groundwork.errors import InputError, unknown


class SiteKind(StrEnum):
    """What a site runs."""

    BAREMETAL = "baremetal"
    KVM = "kvm"
    EDGE = "edge"


class DiskFormat(StrEnum):
    """The forms in which an image of ours is stored, as ``qemu-img`` and Glance know them."""

    QCOW2_ZSTD = "qcow2-zstd"
    QCOW2_ZLIB = "qcow2-zlib"
    RAW = "raw"

    @property
    def glance(self) -> str:
        """Glance's ``disk_format``."""
        return self.value.split("-")[0]


class Upload(StrEnum):
    """How a site gets an image's data."""

    DIRECT = "direct"  # sent to Glance, which stores them
    IMPORT = "import"  # sent to Glance's staging area, then imported (glance-direct)
    WEB_DOWNLOAD = "web-download"  # Glance downloads them


@dataclass(frozen=True)
class Site:
    """One site.  Its name is its region's; ``cloud`` names an entry of clouds.yaml where the user set one.

    ``download_from``: the URL at which the site finds the output folder, for ``web-download``.
    """

    name: str
    auth_url: str
    kind: SiteKind
    formats: tuple[DiskFormat, ...]
    cloud: str | None = None
    upload: Upload = Upload.DIRECT
    download_from: str | None = None

    @property
    def slug(self) -> str:
        """The name in the form that clouds.yaml entries usually have: ``chi_uc``."""
        return self.name.replace("@", "_").lower()


_SITE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "auth_url": {"type": "string", "pattern": "^https?://", "description": "the URL of the site's Keystone"},
        "kind": {"enum": [str(kind) for kind in SiteKind]},
        "formats": {"type": "array", "items": {"enum": [str(form) for form in DiskFormat]}},
        "cloud": {"type": "string", "description": "the name of an entry in clouds.yaml"},
        "upload": {"enum": [str(way) for way in Upload]},
        "download_from": {
            "type": "string",
            "pattern": "^https?://[^@]*$",
            "description": "the URL at which the site finds the output folder, without a password in it",
        },
    },
}
_SCHEMA = {"type": "object", "additionalProperties": _SITE}


@cache
def load_sites(sites_file: Path | None = None) -> dict[str, Site]:
    """All known sites by name.  A sites file (YAML, the form of ``sites.yaml``) adds sites and changes keys of ours."""
    rows: dict[str, dict[str, Any]] = {}
    ours = Path(__file__).with_name("sites.yaml")
    for path in [ours] + ([sites_file] if sites_file else []):
        document = documents.load(path, _SCHEMA)
        for name, row in document.data.items():
            rows[name] = {**rows.get(name, {}), **row}
            for key in ("auth_url", "kind", "formats"):
                if key not in rows[name]:
                    raise document.error([name], f"the key {key!r} is missing")
            if rows[name].get("upload") == Upload.WEB_DOWNLOAD and "download_from" not in rows[name]:
                raise document.error(
                    [name, "upload"],
                    "the key 'download_from' is missing: the URL at which the site finds the output folder",
                )
    return {
        name: Site(
            name=name,
            auth_url=row["auth_url"],
            kind=SiteKind(row["kind"]),
            formats=tuple(DiskFormat(form) for form in row["formats"]),
            cloud=row.get("cloud"),
            upload=Upload(row.get("upload", Upload.DIRECT)),
            download_from=row.get("download_from"),
        )
        for name, row in rows.items()
    }


def pick_sites(names: Sequence[str], sites_file: Path | None = None) -> list[Site]:
    """The sites of these names, each once, in their order.  Raises InputError for one that takes no images."""
    known = load_sites(sites_file)
    picked = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise unknown("site", name, known)
        if not known[name].formats:
            raise InputError(f"{name} takes no images of ours", hint="it runs containers; name another site")
        picked.append(known[name])
    return picked
