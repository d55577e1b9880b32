"""The verification ladder: what is proven of a network, and of the files written from it."""
