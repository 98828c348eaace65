"""Backups of the device's state."""
