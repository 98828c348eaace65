"""How clients reach the daemon: methods, roles, events; JSON-RPC on a Unix socket and D-Bus are two doors to them."""
