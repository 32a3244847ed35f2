"""The places at which a network normalizes."""

from __future__ import annotations

PLACES = ("stem", "pre", "mid", "post", "shortcut", "head")
"""After the stem; after a block's first, inner and last convolution (one of two convolutions has
no first: what follows it lies in the middle); on the shortcut; before the head."""
