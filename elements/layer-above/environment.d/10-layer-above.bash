# What the distribution's element would say.
export DISTRO_NAME=$SAGE_DISTRO
export DIB_INIT_SYSTEM=systemd
