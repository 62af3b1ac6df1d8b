"""The library of experts: records, validation, durable storage. A leaf package: it imports neither of the others.

`Library` is the facade: register, get, list, retire, purge, examples, keys. A registration copies and hashes the files
into the store's waiting room (`content_store`), checks the copy against the base (`checks`), moves the copy to the
folder named by its content, and only then records it in the database (`stores`).

Import from the submodules (`adapters_registry.library`, `.records`, `.errors`); this file imports nothing.
"""
