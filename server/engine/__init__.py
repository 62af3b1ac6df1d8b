"""Engines: what executes a recipe, behind one small seam."""
