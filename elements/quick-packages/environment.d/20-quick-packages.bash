# What debian-minimal and ubuntu-minimal install on top of mmdebstrap's tree, and lsb-release, which the debootstrap
# element wants before the other packages.
export DIB_MMDEBSTRAP_EXTRA_ARGS="--include=busybox,gnupg2,lsb-release,python3,sudo,systemd-sysv"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='$TMP_HOOKS_PATH/quick-packages-files/dpkg-database memory \"\$1\"'"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --customize-hook='$TMP_HOOKS_PATH/quick-packages-files/dpkg-database disk \"\$1\"'"
if [ "${DISTRO_NAME:-}" = debian ] && [ -n "${DIB_DEBIAN_SECURITY_MIRROR:-}" ]; then
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='echo deb $DIB_DEBIAN_SECURITY_MIRROR $DIB_RELEASE-security"
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" ${DIB_DEBIAN_COMPONENTS//,/ } >> \"\$1\"/etc/apt/sources.list.d/security.list'"
fi
