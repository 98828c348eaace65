"""The device's network: interfaces, names, time."""
