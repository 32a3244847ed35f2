"""The networks: each builds a ``keras.Model`` out of a ``Norm`` that it is handed."""
