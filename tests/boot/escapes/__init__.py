"""Attempts to get out of a sandbox: one C program, and what to make of what it says."""
