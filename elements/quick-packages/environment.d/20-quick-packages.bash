# What the elements of this layer ask for is installed by mmdebstrap's one run of apt; the further runs of the
# distribution's element and of package-installs then find it all there.  (lsb-release: the debootstrap element wants it
# early.)
DIB_MMDEBSTRAP_EXTRA_ARGS="${DIB_MMDEBSTRAP_EXTRA_ARGS:-} --include=lsb-release"
for sage_package in ${SAGE_BASE_PACKAGES:-}; do
    DIB_MMDEBSTRAP_EXTRA_ARGS+=",$sage_package"
done
# The archives that the distribution's element takes upgrades from.
sage_archives=()
if [ "${DISTRO_NAME:-}" = debian ]; then
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
if [ -n "${SAGE_APT_LISTS:-}" ]; then
    DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='cp -p $SAGE_APT_LISTS/* \"\$1\"/var/lib/apt/lists'"
fi
export DIB_MMDEBSTRAP_EXTRA_ARGS
unset sage_archives sage_archive sage_suite sage_package
