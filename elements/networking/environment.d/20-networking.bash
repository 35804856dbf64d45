# No interfaces.d/eth0 of diskimage-builder's: waiting for an interface of that name holds up the boot for a minute.
export DIB_APT_MINIMAL_CREATE_INTERFACES=0
