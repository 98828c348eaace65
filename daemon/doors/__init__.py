"""How calls come in: JSON-RPC on a Unix socket, D-Bus."""
