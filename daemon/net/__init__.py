"""The device's network: interfaces, WireGuard, names and time. One netlink codec of its own below all of it."""
