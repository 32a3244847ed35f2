"""The training engine: one compiled function runs many steps on data that is on the device."""
