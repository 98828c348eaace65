"""Policies of sandboxes as data, and as the bytes that the launcher in C enforces."""
