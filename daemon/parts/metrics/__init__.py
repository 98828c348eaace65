"""Metrics and health: what the machine and each unit use, now and for the last hour, for people and for Prometheus.

Nothing is measured until somebody asks: an idle device has no wake-ups from here, and psutil is imported with the first
question (1.4 MiB on top of what the daemon has loaded anyway).
"""
