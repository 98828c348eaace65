"""The proxy setting of the whole device."""
