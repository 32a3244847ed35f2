"""Probes: what is measured inside a run beyond loss and accuracy, one file each."""
