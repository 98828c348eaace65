"""What the kernel offers, as the parts use it: netlink, cgroups, mounts, processes, device-mapper. Knows no part."""
