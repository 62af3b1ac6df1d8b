"""Checks of an adapter folder against the base model, without loading a tensor that was not checked."""
