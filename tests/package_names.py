# SPDX-License-Identifier: Apache-2.0
"""What the distributions' archives are asked for by the variants base and sage, release by release, for amd64.

The unit tests compare what the elements ask for with these lists, and the archive of Ubuntu's layout that the
integration tests build from has Ubuntu's names alone: a name of Debian's that leaks in is found by both.
Look a new name up in all releases before adding it: https://packages.ubuntu.com, https://packages.debian.org.
"""

_BOTH = {
    *("adduser", "apparmor", "apt", "bash-completion", "busybox", "ca-certificates", "chrony", "cloud-guest-utils"),
    *("cloud-init", "curl", "dbus", "docker.io", "eject", "ethtool", "fdisk", "firewalld", "grub-efi-amd64-bin"),
    *("grub-pc-bin", "grub2-common", "iproute2", "iptables", "iputils-ping", "jq", "less", "libpam-systemd", "locales"),
    *("lsb-release", "lsof", "nano", "openssh-server", "pciutils", "procps", "python3", "python3-asyncssh"),
    *("python3-cryptography", "python3-jsonschema", "python3-pika"),
    *("python3-rich", "python3-yaml", "rsync", "sudo", "systemd-sysv", "tzdata", "udev", "unattended-upgrades", "wget"),
    "zstd",
}
_UBUNTU = _BOTH | {"docker-compose-v2", "linux-image-generic", "netplan.io"}
_DEBIAN = _BOTH | {"docker-compose", "gnupg2", "initramfs-tools", "linux-image-amd64", "netbase", "systemd-resolved"}
# What the container images that sage carries are made of (virtual_waggle/stacks/images.yaml), in every release.
IN_CONTAINERS = {
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin"),
    *("openssh-client", "python3", "python3-aiohttp", "python3-asyncssh", "python3-cryptography"),
    *("python3-jsonschema", "python3-pika", "python3-pil", "python3-psycopg2", "python3-rich", "python3-yaml"),
    *("rabbitmq-server", "rsync", "sed", "util-linux"),
}
ASKED_FOR = {
    "jammy": _UBUNTU | {"initramfs-tools"},  # systemd-resolved is a part of its systemd
    "noble": _UBUNTU | {"initramfs-tools", "systemd-resolved"},
    "resolute": _UBUNTU | {"dracut", "systemd-resolved"},
    "bookworm": _DEBIAN,
}

# What element cuda adds, in restricted and multiverse (Ubuntu) and in contrib and non-free (Debian).
_CUDA_UBUNTU = {
    *("g++", "linux-modules-nvidia-580-server-generic", "nvidia-cuda-toolkit", "nvidia-headless-no-dkms-580-server"),
    "nvidia-utils-580-server",
}
_CUDA_DEBIAN = {
    *("g++", "libcuda1", "linux-headers-amd64", "nvidia-cuda-toolkit", "nvidia-kernel-dkms", "nvidia-modprobe"),
    *("nvidia-persistenced", "nvidia-smi"),
}
CUDA_ASKED_FOR = {
    **dict.fromkeys(("jammy", "noble", "resolute"), _CUDA_UBUNTU),
    "bookworm": _CUDA_DEBIAN,
}
