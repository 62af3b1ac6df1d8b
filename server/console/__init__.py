"""The console: a page of plain HTML, style and ES modules, as it is sent; `server.api.console` serves it.

It holds no data. Everything that it shows comes from the admin and the inference API, asked with the key that the
operator types.
"""
