"""The rescue entry: what it tells, and what can be done there, on the local console.

It is started by the loader when no version is left to start, or by hand. It runs from memory, out of one signed file,
and finds the disk itself; nothing listens.
"""
