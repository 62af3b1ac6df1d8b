"""Embedders: text to unit vectors. An `Encoder` is a synchronous model, an `Embedder` serves one to the event loop."""
