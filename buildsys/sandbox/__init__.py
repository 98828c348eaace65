"""The build sandbox: one namespace set per action, no network, only declared inputs, or no build at all."""

from buildsys.sandbox.spec import Mount, SandboxSpec

__all__ = ["Mount", "SandboxSpec"]
