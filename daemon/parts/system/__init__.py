"""The system as a whole: its state, restart, switching off."""
