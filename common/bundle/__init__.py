"""Bundles: what carries a release to a device, as bytes."""
