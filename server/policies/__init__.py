"""Policies: definitions, fitting data, fitting, and the fitted router that answers."""
