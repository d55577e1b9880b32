"""``dsf-bench search`` and ``dsf-bench front``: score against energy, searched on both sides with the same freedom."""
