"""One layer, one file. Each is a backend that wraps another one; the order of a good chain is in ``docs`` and ``check``.

Import layers from their modules (``aiecs_resilient.layers.retry``): their libraries load only when used.
"""

from ._base import Layer, UniformLayer

__all__ = ["Layer", "UniformLayer"]
