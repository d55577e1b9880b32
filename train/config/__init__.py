"""Typed settings of a training, of DSFormer and of its rivals."""
