"""The device's name on the local network."""
