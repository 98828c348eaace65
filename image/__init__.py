"""The disk image: layout, assembly, running it in QEMU, writing it to a disk. What lies on a disk: `common.disk`."""
