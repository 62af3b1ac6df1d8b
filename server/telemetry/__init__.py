"""Metrics, logs, prices, and the drift of traffic."""
