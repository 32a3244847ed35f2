"""normbench: the bench on which normalization layers are compared."""

__version__ = "0.1.0"
