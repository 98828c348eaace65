"""Signed A/B updates: what runs, what the loader starts next, whether a new version is good."""
