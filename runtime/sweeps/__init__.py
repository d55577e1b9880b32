"""``dsf-bench sweep`` and ``dsf-bench table``: many trainings, cached by content, and their table."""
