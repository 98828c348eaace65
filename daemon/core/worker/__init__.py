"""Processes of their own for parts: a fork server makes them, mixosd supervises them, JSON goes between."""
