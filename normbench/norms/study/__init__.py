"""Layers kept only to be measured: faulty versions that circulate, and other packages' layers."""
