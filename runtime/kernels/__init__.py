"""The C code of the fast engine."""
