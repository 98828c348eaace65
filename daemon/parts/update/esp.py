"""The EFI system partition of the boot disk, read and changed without mounting it.

Only we and the loader write to it, never both at once. Our steps are ordered so that a cut at any sector leaves either
the old or the new names (`common.disk.fatedit`), which the kernel's own driver does not promise.
"""

from __future__ import annotations


class Esp: ...
