"""Sweeps that ship with dsf: the paper's tables and the rivals, as YAML."""
