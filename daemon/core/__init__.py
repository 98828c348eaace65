"""What the daemon is made of: parts, methods and who may call them, dispatch, audit, events."""
