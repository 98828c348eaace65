"""The native sandbox: policies as data, compiled for a small static launcher that enforces them or runs nothing."""
