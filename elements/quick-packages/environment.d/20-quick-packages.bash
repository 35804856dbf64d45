# What debian-minimal and ubuntu-minimal install on top of mmdebstrap's tree, and lsb-release, which the debootstrap
# element wants before the other packages.
DIB_MMDEBSTRAP_EXTRA_ARGS="${DIB_MMDEBSTRAP_EXTRA_ARGS:-} --include=busybox,lsb-release,python3,sudo,systemd-sysv"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='$TMP_HOOKS_PATH/quick-packages-files/dpkg-database memory \"\$1\"'"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --customize-hook='$TMP_HOOKS_PATH/quick-packages-files/dpkg-database disk \"\$1\"'"
# The archives that those two elements take upgrades from.
sage_archives=()
if [ "${DISTRO_NAME:-}" = debian ]; then
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" --include=gnupg2"
    sage_archives+=("${DIB_DISTRIBUTION_MIRROR:-} $DIB_RELEASE-updates")
    sage_archives+=("${DIB_DEBIAN_SECURITY_MIRROR:-} $DIB_RELEASE-security")
else
    for sage_suite in ${DIB_UBUNTU_MIRROR_DISTS//,/ }; do
        sage_archives+=("${DIB_DISTRIBUTION_MIRROR:-} $DIB_RELEASE-$sage_suite")
    done
fi
for sage_archive in "${sage_archives[@]}"; do
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='echo deb $sage_archive ${DIB_DEBIAN_COMPONENTS//,/ }"
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" >> \"\$1\"/etc/apt/sources.list.d/more.list'"
done
export DIB_MMDEBSTRAP_EXTRA_ARGS
unset sage_archives sage_archive sage_suite
