# A folder of keyrings in place of the build machine's, and no single file. mmdebstrap would also guess a keyring of the
# distribution's and name it in sources.list, where it would beat ours; that guess is all that the --skip leaves out.
# (The folder is not there yet when it is only asked what the elements want; the script in root.d insists on it.)
DIB_MMDEBSTRAP_EXTRA_ARGS="${DIB_MMDEBSTRAP_EXTRA_ARGS:-} --keyring=${SAGE_ARCHIVE_KEYS:-} --keyring=/dev/null"
export DIB_MMDEBSTRAP_EXTRA_ARGS+=" --skip=check/signed-by"
