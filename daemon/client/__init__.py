"""The daemon's clients: one connection, the command line, the console."""
