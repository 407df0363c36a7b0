"""The shell: takes runs up, asks the core what is next, has it done, and saves."""
