"""The training engine: one compiled function over many steps, on data that lives on the device."""
