"""The parts of the conformance suite: see `flujo.testing.backend_suite`, which puts them together."""
