"""The boot disk's only writer while the system runs: the program `mixos-slots`.

mixosd may write no disk (its AppArmor profile); it may start this program, which has a profile of its own and does
nothing else than what is said here, whatever it is told: it finds the disk itself, never touches the slot that runs,
and makes nothing startable that it has not read back from the disk and found to be what its root hash says.
"""
