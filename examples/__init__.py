"""Programs that show what flujo is for. `make demo` runs `examples.demo`."""
