"""Loggers: other places that a run's rows are written to as it trains, one file each."""
