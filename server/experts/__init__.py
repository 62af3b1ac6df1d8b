"""The life of an expert in this gateway: imported, registered, probed, promoted, watched and drained."""
