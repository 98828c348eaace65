"""Content of calls that comes in pieces."""
