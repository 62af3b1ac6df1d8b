"""Spans of requests, exported by OpenTelemetry. Loaded only with `--otlp-endpoint`."""
