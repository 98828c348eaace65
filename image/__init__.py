"""The disk image: partition table, verity tree, boot file, assembly, running it in QEMU, writing it to a disk.

Import-light on purpose: `image.gpt` and `image.verity` also run on the device, where the rest is not needed.
"""
