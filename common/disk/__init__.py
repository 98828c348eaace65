"""What lies on a disk: partition table, FAT, verity tree. Standard library only, for host and device."""
