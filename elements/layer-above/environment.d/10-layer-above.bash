# What the distribution's element would say.
export DISTRO_NAME=$SAGE_DISTRO
export DIB_INIT_SYSTEM=systemd
export SAGE_LAYER_ABOVE=1
