"""Names and places that several tasks draw from; separate per split so that test people are never seen in training."""

from __future__ import annotations

from .base import Split

_FIRST: dict[Split, list[str]] = {
    "train": (
        "Anna Ben Carla David Elena Felix Grace Henry Ines Jonas Karen Liam Maria Nadia Oscar Paula Quentin "
        "Rosa Samuel Tina Umar Vera Walter Xenia Yusuf Zoe Amir Bianca Chloe Dmitri Emma Farid Gloria Hugo "
        "Irene Jack Kofi Laura Miguel Nora"
    ).split(),
    "test": (
        "Adele Boris Cora Daniel Edith Frank Greta Hannah Ivan Julia Kevin Lena Martin Olga Peter Ruth Simon Tara"
    ).split(),
}
_LAST: dict[Split, list[str]] = {
    "train": (
        "Fischer Martin Rossi Novak Silva Khan Okafor Jensen Dubois Tanaka Walker Young Costa Meyer Haddad "
        "Larsen Romano Singh Turner Vargas Weber Adams Brown Carter Dixon Evans Foster Grant Hughes Irving "
        "Jones Keller Lopez Moreau Nguyen Ortiz"
    ).split(),
    "test": (
        "Baker Cohen Delgado Eriksen Ferrari Gupta Hansen Ibrahim Jordan Kovac Lambert Morris Nash Olsen Price Quinn"
    ).split(),
}
_CITIES: dict[Split, list[str]] = {
    "train": (
        "Berlin Lisbon Oslo Chicago Madrid Toronto Dublin Prague Vienna Boston Mumbai Nairobi Seattle Warsaw "
        "Denver Athens Lima Tokyo Geneva Austin"
    ).split(),
    "test": ("Paris Rome Sydney Dallas Helsinki Porto Munich Cairo Krakow Bergen").split(),
}


def first_names(split: Split) -> list[str]:
    """First names of `split`."""
    return _FIRST[split]


def last_names(split: Split) -> list[str]:
    """Family names of `split`."""
    return _LAST[split]


def cities(split: Split) -> list[str]:
    """Cities of `split`."""
    return _CITIES[split]
