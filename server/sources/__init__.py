"""Fetching adapters from elsewhere: what may be read, from where, how, and what of it is believed.

`locations` says which URLs are allowed, `addresses` which hosts may be reached, `http`, `hub` and `objects` fetch into
the files of `partial`, `proof` checks what came, and `fetching` puts these together. Nothing here knows the library.
"""
