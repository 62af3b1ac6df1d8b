"""A sentence in the present tense to the simple past, nothing else changed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .base import Item, Split, Task

_VERBS = """
walk|walked|to the station;along the beach
cook|cooked|dinner for the family;a pot of soup
play|played|the piano;chess with a neighbour
watch|watched|the birds;an old film
clean|cleaned|the kitchen;the windows
visit|visited|the museum;a friend in town
paint|painted|the fence;a small landscape
carry|carried|the bags upstairs;a heavy box
study|studied|the map;a new language
open|opened|the shop;a letter
call|called|the doctor;a taxi
help|helped|the visitors;an old lady
wash|washed|the car;the dishes
repair|repaired|bicycles;the roof
order|ordered|a pizza;new books
go|went|to the market;home by bus
eat|ate|an apple;lunch in the park
drink|drank|green tea;a glass of water
write|wrote|a report;letters to the editor
read|read|the newspaper;a chapter
sing|sang|in the choir;an old song
run|ran|around the lake;to the bus stop
swim|swam|in the river;ten lengths
drive|drove|to the office;a red van
buy|bought|fresh bread;flowers
sell|sold|vegetables;used furniture
teach|taught|a yoga class;history
catch|caught|the early train;a few fish
bring|brought|a cake;the children to school
take|took|the stairs;a short nap
give|gave|a short talk;the dog a bone
make|made|a list;pancakes
find|found|a coin;the way out
sleep|slept|on the sofa;in a tent
speak|spoke|to the manager;with the guests
wear|wore|a blue coat;comfortable shoes
build|built|a wooden shed;model boats
lose|lost|an umbrella;the key
leave|left|the house;a message
meet|met|the team;a customer
"""
_SINGULAR: dict[Split, list[str]] = {
    "train": (
        "She,He,My brother,The teacher,Our neighbour,Anna,The old man,My boss,Her friend,Mr Lopez,The nurse,Samuel"
    ).split(","),
    "test": ("My sister,The farmer,Greta,His cousin,The student,Mrs Price").split(","),
}
_PLURAL: dict[Split, list[str]] = {
    "train": ("I,We,They,The children,My parents,Our guests,The workers,Ben and Carla").split(","),
    "test": ("You,The tourists,My friends,Simon and Tara").split(","),
}
_WHEN: dict[Split, list[str]] = {
    "train": (
        ",every morning,on Sundays,after work,in the evening,with great care,twice a week,before breakfast"
    ).split(","),
    "test": (",every afternoon,on Fridays,after school,once a month").split(","),
}


def _third_person(verb: str) -> str:
    if verb.endswith(("sh", "ch", "o", "x", "ss")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


_ENTRIES = [tuple(line.split("|")) for line in _VERBS.strip().splitlines()]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A present-tense sentence and its parts; `verb` is the infinitive."""

    subject: str
    verb: str
    past: str
    rest: str
    present: str


def present_sentence(rng: random.Random, split: Split) -> Sentence:
    """Draw a sentence; subjects and times are separate per split, verbs and objects are shared."""
    verb, past, objects = rng.choice(_ENTRIES)
    singular = rng.random() < 0.6
    subject = rng.choice((_SINGULAR if singular else _PLURAL)[split])
    when = rng.choice(_WHEN[split])
    rest = rng.choice(objects.split(";")) + (f" {when}" if when else "")
    present = f"{subject} {_third_person(verb) if singular else verb} {rest}."
    return Sentence(subject, verb, past, rest, present)


def _make(rng: random.Random, split: Split) -> Item:
    sentence = present_sentence(rng, split)
    return Item(sentence.present, f"{sentence.subject} {sentence.past} {sentence.rest}.", key=sentence.present)


TASK = Task(
    name="past_tense",
    description="Rewrites a present-tense English sentence in the simple past and changes nothing else.",
    tags=("grammar", "english", "rewriting"),
    train_templates=(
        "Put this sentence into the past tense: {x}",
        "Rewrite in the simple past. {x}",
        "past tense: {x}",
        'What is the past tense of the sentence "{x}"?',
        "Change the verb to past tense: {x}",
        "I am practising English grammar. How do I say '{x}' in the past?",
        "{x} Now say it as if it had happened yesterday.",
        "Make this past tense please: {x}",
        "Grammar exercise, present to past: {x}",
        "My story should be in past tense. Fix this line: {x}",
    ),
    test_templates=(
        "Can you rewrite the following in past tense? {x}",
        "simple past of: {x}",
        'For my English homework I must turn "{x}" into the past.',
        "Convert from present tense to past tense: {x}",
        "{x} <- this sentence in the past tense, please",
    ),
    make=_make,
    pools_by_split=True,
)
