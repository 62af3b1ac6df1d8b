"""Recipe ingredient lines to JSON: "2 cups of chopped walnuts" → quantity, unit, item."""

from __future__ import annotations

import json
import random

from .base import Item, Split, Task

_UNITS = {
    "cup": ("cup", "cups"),
    "tablespoon": ("tablespoon", "tablespoons", "tbsp"),
    "teaspoon": ("teaspoon", "teaspoons", "tsp"),
    "g": ("g", "grams"),
    "kg": ("kg",),
    "ml": ("ml",),
    "ounce": ("ounce", "ounces", "oz"),
    "pinch": ("pinch", "pinches"),
    "slice": ("slice", "slices"),
    "can": ("can", "cans"),
}
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_FRACTIONS = {"1/2": 0.5, "1/4": 0.25, "3/4": 0.75, "1 1/2": 1.5, "2 1/2": 2.5}
_STATES = (",,,chopped ,fresh ,grated ,dried ,melted ,frozen ,sliced ,ground ,unsalted ").split(",")
_FOODS: dict[Split, list[str]] = {
    "train": (
        "walnuts,flour,sugar,butter,olive oil,milk,cream,honey,spinach,parsley,basil,tomatoes,chickpeas,"
        "black beans,rice,oats,cheddar,parmesan,bacon,ham,bread,cinnamon,nutmeg,paprika,cumin,soy sauce,"
        "vinegar,yoghurt,almonds,raisins,carrots,peas,mushrooms,coconut milk,maple syrup,cocoa powder,"
        "quinoa,couscous,feta,salmon,beef,tofu,oregano,rosemary,coriander,curry powder,mustard,ketchup,tahini,"
        "peanut butter,cranberries,blueberries,cauliflower,cabbage,celery,pumpkin,brown sugar,cornstarch,noodles"
    ).split(","),
    "test": (
        "pecans,corn,sour cream,mint,lentils,mozzarella,turkey,ginger,turmeric,lemon juice,cherries,broccoli,"
        "thyme,leeks"
    ).split(","),
}
_WHOLE: dict[Split, list[str]] = {
    "train": (
        "eggs,onions,apples,lemons,potatoes,bananas,garlic cloves,bay leaves,limes,red peppers,carrots,cucumbers,"
        "peaches,mangoes,radishes,aubergines,sweet potatoes,tortillas,figs,egg yolks,chicken breasts,kiwis"
    ).split(","),
    "test": ("shallots,oranges,pears,avocados,plums,courgettes").split(","),
}


def _quantity(rng: random.Random, metric: bool) -> tuple[str, float]:
    if metric:
        amount = rng.choice([5, 10, 25, 50, 75, 100, 120, 150, 200, 250, 300, 350, 400, 500, 600, 750])
        return str(amount), amount
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(list(_FRACTIONS.items()))
    if kind == 1:
        return rng.choice(list(_NUMBERS.items()))
    amount = rng.randrange(1, 13)
    return str(amount), amount


def _make(rng: random.Random, split: Split) -> Item:
    unit: str | None
    if rng.random() < 0.3:
        written, amount, unit = *rng.choice([(str(n), n) for n in range(2, 13)] + list(_NUMBERS.items())[1:]), None
        item = rng.choice(["", "large ", "small ", "ripe "]) + rng.choice(_WHOLE[split])
        text = f"{written} {item}"
        quantity: float = amount
    else:
        unit = rng.choice(list(_UNITS))
        written, quantity = _quantity(rng, metric=unit in {"g", "ml"})
        item = rng.choice(_STATES) + rng.choice(_FOODS[split])
        glue = "" if unit in {"g", "ml", "kg"} and written.isdigit() and rng.random() < 0.5 else " "
        name = _UNITS[unit][0] if glue == "" else rng.choice(_UNITS[unit])
        text = f"{written}{glue}{name} {rng.choice(['', 'of '])}{item}"
    answer = json.dumps({"quantity": quantity, "unit": unit, "item": item})
    return Item(text, answer, key=text)


TASK = Task(
    name="ingredient_json",
    description="Parses one ingredient line of a recipe into JSON with quantity, unit and item.",
    tags=("recipes", "json", "parsing"),
    train_templates=(
        "Parse this recipe ingredient into JSON: {x}",
        "Turn the ingredient '{x}' into a JSON object.",
        "ingredient to json: {x}",
        'What are the quantity, unit and item in "{x}"? Answer as JSON.',
        "For my cookbook app, structure this ingredient line: {x}",
        "{x}\n\nMake JSON of that recipe line.",
        "Split {x} into amount, unit and food, as JSON.",
        "My recipe calls for {x}. Write that ingredient as JSON.",
        "JSON for this line of a shopping list: {x}",
        "Please extract the ingredient data from: {x}",
    ),
    test_templates=(
        "Can you convert this ingredient line to JSON? {x}",
        "json for recipe ingredient {x}",
        "The recipe says: {x}. Give me quantity, unit and item as a JSON object.",
        'Structured version of the cooking ingredient "{x}" please',
        "I am importing recipes. Encode {x} as an ingredient JSON.",
    ),
    make=_make,
    pools_by_split=True,
)
