"""Loggers, which write a run's rows for other tools; one module each."""
