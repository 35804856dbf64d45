# SPDX-License-Identifier: Apache-2.0
"""What an image promises to Chameleon, where two boots with a config drive don't show it, and that checks can fail."""

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image_builder import config_drive, hardware, machine, variant, verify
from image_builder.cli import project_folder
from image_builder.hardware import Firmware, Guise
from image_builder.machine import LoginKey, Machine, Site
from image_builder.variant import Arch, Check
from tests.integration import commands, metadata_service
from tests.integration.serial_console import SerialConsole

pytestmark = pytest.mark.long

OPERATORS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIW9XdHZtVGVzdEtleU9mTm9ib2R5QXRBbGxTYWdl operators"
SETTINGS = {"SAGE_OPERATORS_KEY": OPERATORS_KEY}
UP = 400.0  # seconds from power-on, emulated


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` with the operators' key."""
    top = tmp_path_factory.mktemp("contract")
    (top / "variants").mkdir()
    (top / "variants/contract.yaml").write_text(
        "description: base with an operators' key\nextends: base\nimage_name: Contract\n"
        f'settings: {{SAGE_OPERATORS_KEY: "{OPERATORS_KEY}"}}\n'
    )
    words = ["--variant", "contract", "--release", "bookworm", "--no-verify", "--variants-dir", str(top / "variants")]
    done = commands.run("create-image", *words, "--output-dir", top / "build", "--cache-dir", top / "cache")
    assert done.code == 0, done.err
    return next((top / "build").glob("Contract/*/*.qcow2"))


@contextmanager
def booted(image: Path, firmware: Firmware, key: LoginKey, folder: Path, site: Site | None = None) -> Iterator[Machine]:
    accel = "kvm" if machine.kvm_works() else "tcg"
    log = folder / "console.log"
    with machine.running(image, Arch.AMD64, firmware, key, log, folder, accel=accel, cpus=2, site=site) as guest:
        yield guest


def test_without_config_drive_and_metadata_service_the_serial_console_has_a_shell(image: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        socket = Path(short) / "console"
        site = Site(Guise.BARE_METAL, None, console=socket)
        with booted(image, Firmware.UEFI, machine.new_key(), tmp_path, site):
            console = SerialConsole(socket)
            console.wait_for(r"login: cc \(automatic login\)", UP)
            console.wait_for(r"\$ $", 60)
            status, said = console.ask("cloud-init status --wait", 240)  # until then it writes to the console too
            assert status == 0
            assert "status: done" in said
            status, said = console.ask("id -un; sudo id -u", 60)
            assert (status, said.split()) == (0, ["cc", "0"])
            _, said = console.ask("jq -r .v1.datasource /run/cloud-init/result.json", 60)
            assert said.strip() == "DataSourceNone"
            # The network came by DHCP all the same, and nothing failed for want of a site.
            _, said = console.ask("ip -4 -brief address show scope global", 60)
            assert "10.0.2.15/24" in said
            assert console.ask("systemctl is-system-running --wait", 120)[1].strip() == "running"
            assert console.ask("! test -e /var/cache/vendordata2.json", 60)[0] == 0
            console.close()


def test_the_metadata_service_tells_name_key_user_data_and_vendor_data(image: Path, tmp_path: Path) -> None:
    key = machine.new_key()
    told = config_drive.of_bare_metal(key.public, hardware.MAC)
    assert told.vendor_data2 is not None
    promised = told.vendor_data2["chameleon"]
    older = {**promised, "application_credential_secret": "s3cret", "access": {"token": "s3cret"}}
    virtual = config_drive.of_virtual_machine("", hardware.MAC)
    instance = replace(told, network=virtual.network, vendor_data2={"chameleon": older, "openrc": "OS_TOKEN=x"})
    served = tmp_path / "served"
    for name, text in instance.documents().items():
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        (served / name).write_bytes(text)
    # The service's address must lie in the network that QEMU plays.
    serve = shlex.join([sys.executable, metadata_service.__file__, str(served)])
    network = f"user,restrict=on,net=169.0.0.0/8,guestfwd=tcp:169.254.169.254:80-cmd:{serve}"
    with booted(image, Firmware.BIOS, key, tmp_path, Site(Guise.VIRTUAL, None, network=network)) as guest:
        connection = guest.login("cc", UP)

        def ask(command: str) -> str:
            done = connection.run(f"timeout 120 bash -c {shlex.quote(command)}", hide=True, warn=True, in_stream=False)
            assert done.exited == 0, done.stdout + done.stderr
            return str(done.stdout).strip()

        ask("cloud-init status --wait")
        assert ask("jq -r .v1.datasource /run/cloud-init/result.json").startswith("DataSourceOpenStack")
        assert ask("hostname --fqdn") == "sage-verify-node.novalocal"
        ask("cmp /run/sage-verify/written /run/sage-verify/run")
        ask("until test -e /var/cache/vendordata2.json; do sleep 1; done")
        assert ask("jq -r .chameleon.lease_id /var/cache/vendordata2.json") == older["lease_id"]
        # An older site's credentials are for nobody else on the machine.
        assert json.loads(ask("cat /var/cache/vendordata2.json")) == {"chameleon": promised}
        assert older["node"] in ask("cat /run/motd.d/60-chameleon")
        # The lease is extended: the copy follows.
        (served / "openstack/latest/vendor_data2.json").write_text(
            '{"chameleon": {"lease_end": "2030-01-01 00:00:00"}}'
        )
        ask("sudo systemctl start sage-vendordata.service")
        ask("until grep 2030-01-01 /run/motd.d/60-chameleon; do sleep 1; done")


SSHD = "/etc/ssh/sshd_config.d/05-own.conf"
RELOAD = "sudo systemctl reload ssh"
# Check -> what breaks its promise -> what mends it again.
BREAKAGES = [
    (
        "cloud-init is done",
        "echo ' ERROR x' | sudo tee -a /var/log/cloud-init.log",
        "sudo sed -i '$d' /var/log/cloud-init.log",
    ),
    ("no unit of systemd", "sudo systemd-run --wait --unit=broken false || true", "sudo systemctl reset-failed"),
    ("cc is uid 1000", "echo cc:word | sudo chpasswd", "sudo usermod --password '!' cc"),
    ("cc is uid 1000", "sudo usermod --shell /bin/sh cc", "sudo usermod --shell /bin/bash cc"),
    ("ccadmin is uid", "sudo mv /etc/sudoers.d/50-ccadmin /root", "sudo mv /root/50-ccadmin /etc/sudoers.d"),
    ("ccadmin is uid", "sudo mv ~ccadmin/.ssh ~ccadmin/x", "sudo mv ~ccadmin/x ~ccadmin/.ssh"),
    ("a GPT disk", "sudo umount /boot/efi", "sudo mount /boot/efi"),
    ("the root file system fills", "sudo partx --delete --nr 4 /dev/sda", "sudo partx --add --nr 4 /dev/sda"),
    (
        "cloud-init asks",
        "echo 'datasource_list: [ NoCloud ]' | sudo tee /etc/cloud/cloud.cfg.d/99-own.cfg",
        "sudo rm /etc/cloud/cloud.cfg.d/99-own.cfg",
    ),
    ("cloud-init asks", "echo '# x' | sudo tee -a /etc/cloud/cloud.cfg", "sudo sed -i '$d' /etc/cloud/cloud.cfg"),
    ("name, keys, network", "sudo hostname other", "sudo hostname sage-verify-node"),
    ("name, keys, network", "mv ~/.ssh/authorized_keys ~", "mv ~/authorized_keys ~/.ssh"),
    ("name, keys, network", "sudo ip link set enp0s1 mtu 1400", "sudo ip link set enp0s1 mtu 1450"),
    ("name, keys, network", "sudo rm /run/sage-verify/run", "sudo cp /run/sage-verify/written /run/sage-verify/run"),
    (
        "name, keys, network",
        "sudo ip address add 10.0.2.99/24 dev enp0s1",
        "sudo ip address del 10.0.2.99/24 dev enp0s1",
    ),
    ("vendor data", "sudo mv /var/cache/vendordata2.json /root", "sudo mv /root/vendordata2.json /var/cache"),
    ("vendor data", "sudo systemctl stop sage-vendordata.timer", "sudo systemctl start sage-vendordata.timer"),
    ("the login message", "sudo mv /run/motd.d/60-chameleon /run", "sudo mv /run/60-chameleon /run/motd.d"),
    (
        "the serial console",
        "sudo systemctl stop serial-getty@ttyS0.service",
        "sudo systemctl start serial-getty@ttyS0.service",
    ),
    (
        "ssh refuses passwords",
        f"printf 'PasswordAuthentication yes\\nAuthenticationMethods any\\n' | sudo tee {SSHD}; {RELOAD}",
        f"sudo rm {SSHD}; {RELOAD}",
    ),
    (
        "ssh refuses root",
        f"echo 'PermitRootLogin yes' | sudo tee {SSHD}; sudo mkdir -p /root/.ssh; "
        "sudo cp --preserve=mode ~/.ssh/authorized_keys /root/.ssh/own; sudo mv /root/.ssh/authorized_keys /root; "
        "sudo mv /root/.ssh/own /root/.ssh/authorized_keys; sudo chown root: /root/.ssh/authorized_keys; " + RELOAD,
        f"sudo rm {SSHD}; sudo mv /root/authorized_keys /root/.ssh; {RELOAD}",
    ),
    (
        "sshd takes keys",
        f"echo 'MACs +hmac-sha1' | sudo tee {SSHD}",
        f"sudo rm {SSHD}",
    ),
    (
        "the host firewall",
        "sudo firewall-cmd --quiet --zone=public --add-service=http",
        "sudo firewall-cmd --quiet --zone=public --remove-service=http",
    ),
    (
        "what listens",
        "sudo firewall-cmd --quiet --zone=public --add-port=8080/tcp",
        "sudo firewall-cmd --quiet --zone=public --remove-port=8080/tcp",
    ),
    (
        "provenance says",
        "sudo chmod 600 /opt/chameleon/provenance.json",
        "sudo chmod 644 /opt/chameleon/provenance.json",
    ),
    ("chrony keeps", "sudo systemctl stop chrony", "sudo systemctl start chrony"),
    (
        "security upgrades",
        "sudo systemctl disable --quiet apt-daily-upgrade.timer",
        "sudo systemctl enable --quiet apt-daily-upgrade.timer",
    ),
    (
        "security upgrades",
        """echo 'APT::Periodic::Unattended-Upgrade "0";' | sudo tee /etc/apt/apt.conf.d/99-own""",
        "sudo rm /etc/apt/apt.conf.d/99-own",
    ),
    ("snapd is not there", "sudo mkdir /snap", "sudo rmdir /snap"),
    ("nothing of the build", "sudo touch /etc/dib-manifests", "sudo rm /etc/dib-manifests"),
]


def test_every_check_fails_when_its_promise_is_broken(image: Path, tmp_path: Path) -> None:
    checks = variant.load("base", [project_folder("variants")]).checks
    with booted(image, Firmware.UEFI, machine.new_key(), tmp_path) as guest:
        connection = guest.login("cc", UP)

        def make(check: Check, **settings: str) -> tuple[bool, str]:
            return verify.make_check(guest, connection, check, {**SETTINGS, **settings})

        def run(command: str) -> None:
            done: Any = connection.run(
                f"bash -c {shlex.quote(command)}", hide=True, warn=True, in_stream=False, timeout=60
            )
            assert done.exited == 0, f"{command}: {done.stdout}{done.stderr}"

        for check in checks:
            passed, said = make(check)
            assert passed, f"{check.name}: {said}"
        first, *others = checks
        assert not make(first, SAGE_MACHINE="virtual")[0]
        assert not make(first, SAGE_FIRMWARE="bios")[0]
        assert {check.name for check in others} == {
            check.name for check in others for name, _, _ in BREAKAGES if check.name.startswith(name)
        }
        unseen = []
        for name, breaks, mends in BREAKAGES:
            (check,) = (check for check in others if check.name.startswith(name))
            run(breaks)
            begin = time.monotonic()
            if make(replace(check, timeout=15.0))[0]:
                unseen.append(f"{check.name}: {breaks}")
            assert time.monotonic() - begin < 45
            run(mends)
        assert unseen == []
        for check in others:
            passed, said = make(check)
            assert passed, f"{check.name}: {said}"
