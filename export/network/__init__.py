"""The integer network: nodes, file, reference engine and overflow proof. The definition of truth."""
