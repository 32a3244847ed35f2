"""Layers for comparison only: faulty versions found online, and other packages' layers."""
