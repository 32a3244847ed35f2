"""The store: a folder of runs, one folder for each; the only code that touches a run folder.

:class:`normbench.store.store.Store` is the folder of runs, :class:`normbench.store.run.Run` one of
them. Below these, each module has one concern:

- ``lock``: one process trains a run, or verifies the store, at a time.
- ``files``: atomic replacement, strict JSON, appended lines that survive a crash.
- ``records``: the keys of each JSON file, their ranges, and the checksums; made of the checks in
  ``schema``.
- ``checkpoint``: arrays in one file that is whole or refused.
- ``sweeps``, ``tuning``, ``verification``: the files beside the runs, ``sweep.json`` and
  ``tuning.json`` of each sweep and ``verification.json`` of the store.
- ``provenance``: commits, versions and hashes of a user's own code and data.
- ``differences``: the config keys in which runs differ.

Nothing here imports TensorFlow or Keras.
"""
