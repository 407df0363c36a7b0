"""Where runs are kept: the port and the backends that come with flujo."""
