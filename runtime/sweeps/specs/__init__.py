"""Sweeps that ship: the paper's tables and ours."""
