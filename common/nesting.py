"""How deep a document nests: asked before what recurses gets it."""

from __future__ import annotations


def deeper(value: object, levels: int) -> bool:
    """Whether a value of objects, lists and others has more than so many levels, a value that is neither being one."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not layer:
            return False
    return True
