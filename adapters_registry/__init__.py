"""The library of experts: records, validation, durable storage. A leaf: it imports nothing of the other packages.

`Library` is the facade: register, get, list, retire, purge, examples, keys. Its life of a registration: the files are
copied into the store's waiting room while they are hashed (`storage`), the copy is checked against the base
(`validation`), moved to its place by content, and only then recorded in the database (`stores`).

Import from the submodules (`adapters_registry.library`, `.records`, `.errors`); this file imports nothing.
"""
