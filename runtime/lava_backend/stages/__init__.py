"""A network cut into stages for Lava, and what each stage computes tick by tick: what the process classes stand on."""
