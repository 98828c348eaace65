"""Storage: disks, what fills them, quotas, their health."""
