"""The store: a folder of runs, one folder per run. No other code touches a run folder.

:class:`normbench.store.store.Store` is the folder of runs, :class:`normbench.store.run.Run` one of
them. Each of the other modules has one concern:

- ``lock``: only one process at a time trains a run or verifies the store.
- ``files``: atomic replacement, strict JSON, appended lines that survive a crash.
- ``records``: the keys of each JSON file, their ranges, and the checksums; built from the checks in
  ``schema``.
- ``checkpoint``: arrays in one file, which is refused if incomplete.
- ``sweeps``, ``tuning``, ``verification``: the files next to the runs, ``sweep.json`` and
  ``tuning.json`` of each sweep and ``verification.json`` of the store.
- ``provenance``: commits, versions and hashes of a user's own code and data.
- ``differences``: the config keys in which runs differ.

Nothing here imports TensorFlow or Keras.
"""
