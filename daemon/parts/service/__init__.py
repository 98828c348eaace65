"""Supervision: services that outlive the daemon which steers them."""
