# Where mmdebstrap installs the kernel, before there is a pre-install phase.
DIB_MMDEBSTRAP_EXTRA_ARGS="${DIB_MMDEBSTRAP_EXTRA_ARGS:-} --essential-hook='chroot \"\$1\" sh < $TMP_HOOKS_PATH/initramfs-files/put-off'"
export DIB_MMDEBSTRAP_EXTRA_ARGS
# A layer above has the packages from below.
export SAGE_LAYER_ABOVE=${SAGE_LAYER_ABOVE:-0}
