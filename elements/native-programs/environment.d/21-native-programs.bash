# After 20-quick-packages.bash, which sets the same.
DIB_MMDEBSTRAP_EXTRA_ARGS="${DIB_MMDEBSTRAP_EXTRA_ARGS:-}"
# The other architecture's programs run where the native ones are mounted, not on the host, where it would try.
[ -z "${SAGE_NATIVE:-}" ] || DIB_MMDEBSTRAP_EXTRA_ARGS+=" --skip=check/qemu"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --setup-hook='$TMP_HOOKS_PATH/native-programs-files/native-programs mount \"\$1\"'"
DIB_MMDEBSTRAP_EXTRA_ARGS+=" --customize-hook='$TMP_HOOKS_PATH/native-programs-files/native-programs unmount \"\$1\"'"
export DIB_MMDEBSTRAP_EXTRA_ARGS
