"""The models that DSFormer is compared with, behind the same interface."""
