"""Secure Boot's databases in the firmware of this machine, and the only writer of them: the program `mixos-firmware`.

Nothing else on a device writes variables of the firmware: efivarfs is mounted read-only, and this program writes in a
mount namespace of its own. It writes one kind of thing, additions that the image has on its verified root
(`common.efi.additions`); whether their signatures are right is judged by the firmware. What it looks after is that
everything which starts on this machine still starts afterwards (`daemon.firmware.judge`).
"""
