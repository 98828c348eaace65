"""What the user wrote: mixos.toml, recipes and the source lock, as frozen, checked data."""
