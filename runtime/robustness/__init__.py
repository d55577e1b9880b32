"""``dsf-sim-run robustness``: return curves under disturbances and faults."""
