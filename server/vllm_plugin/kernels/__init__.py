"""The arithmetic of experts inside one linear module."""
