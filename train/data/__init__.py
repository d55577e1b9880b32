"""Offline datasets: recipes, collecting, importing, Minari's store, flat files, windows and batches."""
