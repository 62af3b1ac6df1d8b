"""The data path: a request from its API key to the last byte of the answer."""
