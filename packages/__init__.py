"""Packages: `packages.mix` (artifact format and manager, host and device) and `packages/recipes` (data)."""
