"""Searches that ship."""
