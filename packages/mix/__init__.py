"""The package format and its tools.

`errors` and `manifest` run on the device too and import nothing outside the standard library; `artifact` (making
artifacts) and `elf` (checking them) run on the build host only. This file stays empty of imports so that the device
pays for nothing it does not use.
"""
