"""WireGuard tunnels."""
