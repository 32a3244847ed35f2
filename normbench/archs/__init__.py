"""The networks: each module builds a ``keras.Model`` with a given ``Norm``."""
