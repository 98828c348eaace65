"""Storage: disks, what fills them, quotas, their health; and backups of the device's state.

Two parts: `daemon.storage.part:Storage` and `daemon.storage.backup:Backup`. Nothing here is read until somebody asks,
but the fill level of the data partition and, once an hour, the health of the disks.
"""
