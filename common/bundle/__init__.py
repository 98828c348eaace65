"""Bundles: how a release comes to a device. Who writes one and who reads it share these modules."""
