"""Merging stored adapters into one, and the Arrow prototypes of an adapter."""
