"""Loggers: they write a run's rows where other tools read them; one file each."""
