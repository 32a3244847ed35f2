# Pyright's own stubs of TensorFlow are partial and refuse correct calls, tf.Variable(0) among them.
from typing import Any

def __getattr__(name: str) -> Any: ...
