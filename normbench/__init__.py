"""normbench: the bench on which normalization layers are compared."""

from normbench.serializable import register as _register_with_keras

__version__ = "0.1.0"

_register_with_keras()
