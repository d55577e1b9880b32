"""``dsf-bench energy-table``: the paper's table by formula, and dense rivals beside it."""
