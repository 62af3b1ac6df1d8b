"""Metrics, logs, and drift of the traffic."""
