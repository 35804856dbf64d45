# SPDX-License-Identifier: Apache-2.0
"""The places of a libvirt of one's own: what is missing on the host is noted, made, and removed."""

from pathlib import Path

import pytest

from groundwork.errors import InputError
from local_chameleon import hypervisor


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has one of two places already; the service's own folder is ``qemu``."""
    host = tmp_path / "host"
    (host / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "qemu").mkdir()
    monkeypatch.setattr(hypervisor, "_PLACES", {str(host / "etc/libvirt"): "etc", str(host / "lib/libvirt"): "lib"})
    return host


def test_what_was_made_is_removed_and_what_was_there_stays(places: Path, tmp_path: Path) -> None:
    hypervisor.make_places(tmp_path / "qemu")
    hypervisor.make_places(tmp_path / "qemu")  # as after a kill
    assert (places / "lib/libvirt").is_dir()
    hypervisor.remove(tmp_path / "qemu")
    assert (places / "etc/libvirt").is_dir()
    assert not (places / "lib/libvirt").exists()
    hypervisor.remove(tmp_path / "qemu")


def test_what_somebody_put_there_stays(places: Path, tmp_path: Path) -> None:
    hypervisor.make_places(tmp_path / "qemu")
    (places / "lib/libvirt/theirs").touch()
    hypervisor.remove(tmp_path / "qemu")
    assert (places / "lib/libvirt/theirs").exists()


def test_a_state_folder_that_libvirt_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundwork.process.require", lambda *programs: None)
    monkeypatch.setattr("groundwork.process.run", lambda words, check: "9.0.0")
    monkeypatch.setattr(hypervisor, "find_drivers", lambda: Path("/drivers"))
    with pytest.raises(InputError, match="too long"):
        hypervisor.require(Path("/home/cc") / ("x" * 90))
    with pytest.raises(InputError, match="/run"):
        hypervisor.require(Path("/run/user/0/state"))
    hypervisor.require(Path("/home/cc/state"))
