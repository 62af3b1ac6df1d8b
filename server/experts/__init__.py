"""The life of an expert in this gateway: seen, probed, promoted, drained, imported."""
