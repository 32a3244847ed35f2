"""Probes: measurements inside a run beyond loss and accuracy, one file each."""
