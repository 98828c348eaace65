"""The boot disk's only writer while the system runs: the program `mixos-slots`.

mixosd may write no disk (its AppArmor profile); it may start this program, which has a profile of its own and does
nothing else than what is said here, whatever it is told: it finds the disk itself, never touches the root that runs,
and makes nothing startable that it has not read back from the disk and found to be what its root hash says. What it
keeps behind that root (`daemon.slots.kept`), and the tree that follows from it, it restores in both slots.
"""
