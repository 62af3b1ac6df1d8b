"""The path of a request, from the API key to the last byte of the answer."""
