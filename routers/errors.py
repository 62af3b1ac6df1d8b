"""Errors of the routers.

RouterError
├── UnknownRouter      no method of that name (with the nearest names)
├── BadRouter          a registered class does not fit the router protocol
├── BadRouterConfig    an option that the method does not have, or a bad value
├── NotFittable        the library lacks what the method needs (with the key of that need)
├── BadSamples         a file of labelled prompts that cannot be used (with the lines)
├── UnknownMetric      no metric of that name
├── BadArtefact        a stored artefact is damaged or of another method
└── EmbedderError      an embedder cannot be made or has failed (with what to do)
    └── EmbedderBusy   its queue is full: try again later
"""

from __future__ import annotations


class RouterError(Exception):
    """Root of this package's errors; the text says what is wrong and what to do."""


class UnknownRouter(RouterError):
    """No routing method has this name."""


class BadRouter(RouterError):
    """What is registered under this name cannot be imported or does not fit the router protocol."""


class BadRouterConfig(RouterError):
    """An option of a router is unknown or has a bad value."""


class NotFittable(RouterError):
    """The library lacks what the method needs.

    Attributes:
        need: Key of what is missing (`routers.base.Need`); empty for anything else.
    """

    def __init__(self, what: str, need: str = "") -> None:
        super().__init__(what)
        self.need = need


class BadSamples(RouterError):
    """A file of labelled prompts cannot be read, or has bad rows."""


class UnknownMetric(RouterError):
    """No metric has this name."""


class BadArtefact(RouterError):
    """A stored artefact does not match its checksum, its method or its format."""


class EmbedderError(RouterError):
    """An embedder cannot be made or has failed; `what` is wrong and `fix` helps."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what
        self.fix = fix


class EmbedderBusy(EmbedderError):
    """The embedder's queue is full; the request should be refused with a hint to try again."""
