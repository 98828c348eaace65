"""What the API offers about itself, and the audit log."""
