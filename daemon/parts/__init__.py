"""The parts of the daemon: a folder each, with its methods, its commands, its files and what only it needs."""
