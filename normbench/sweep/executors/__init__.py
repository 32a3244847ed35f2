"""Executors, which train the cells of a sweep: one module each, plus their slots and workers."""
