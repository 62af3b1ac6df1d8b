"""Customer messages of a web shop to the team that handles them, as `team: <name>`."""

from __future__ import annotations

import random

from .base import Item, Split, Task

TEAMS = ("billing", "shipping", "returns", "account", "technical")

_PRODUCTS = (
    "headphones,coffee machine,desk lamp,running shoes,backpack,blender,office chair,phone case,winter jacket,"
    "keyboard,tent,watch"
).split(",")

_MESSAGES: dict[Split, dict[str, list[str]]] = {
    "train": {
        "billing": [
            "I was charged twice for the {p}",
            "The invoice for my {p} shows the wrong amount",
            "My credit card was declined when I paid for the {p}",
            "Where can I download the receipt for the {p}",
            "Why is there an extra fee on my bill for the {p}",
            "The discount code was not applied to the price of the {p}",
            "You took the payment for the {p} but the price was lower on the site",
            "I would like to pay for the {p} in instalments",
            "Please add our VAT number to the invoice for the {p}",
            "There is a charge on my bank statement that I do not recognise after buying the {p}",
        ],
        "shipping": [
            "My {p} has not arrived yet",
            "Where is the parcel with my {p}",
            "The tracking number of my {p} does not update",
            "The courier left my {p} at the wrong address",
            "When will the {p} be delivered",
            "Can you ship the {p} to Canada",
            "The delivery of my {p} is three days late",
            "I need to change the delivery address for the {p}",
            "The driver never rang and took the package with the {p} back to the depot",
            "Is express delivery possible for the {p}",
        ],
        "returns": [
            "I want to send the {p} back",
            "The {p} arrived broken and I want a replacement",
            "How do I return the {p}, it does not fit",
            "I would like to exchange the {p} for another colour",
            "I changed my mind about the {p} and want my money back",
            "Please send me a return label for the {p}",
            "You sent me the wrong {p}, I ordered a different size",
            "How long do I have to return the {p}",
            "The {p} is damaged, can I swap it",
            "I got the {p} as a gift and would like to hand it back",
        ],
        "account": [
            "I forgot my password and want to order the {p}",
            "I cannot log in to see my order of the {p}",
            "Please delete my account, I only bought the {p} once",
            "How do I change the email address of my profile, I am waiting for news about the {p}",
            "My account was locked after I ordered the {p}",
            "I never got the confirmation mail to verify my registration before buying the {p}",
            "Someone else is using my login and put the {p} in the basket",
            "I have two user profiles, please merge them, the {p} is in the older one",
            "How do I turn on two-factor login, I do not want others to see that I bought the {p}",
            "The password reset link does not work and I want to buy the {p}",
        ],
        "technical": [
            "The page of the {p} shows an error",
            "Your app crashes when I open the {p}",
            "The button to add the {p} to the basket does nothing",
            "The website is very slow when I look at the {p}",
            "The pictures of the {p} do not load in my browser",
            "The search in your app freezes when I type {p}",
            "I get error 500 when I open the page of the {p}",
            "The video about the {p} does not play on my phone",
            "After the update the app closes by itself when I tap the {p}",
            "The filter on the website is broken, I cannot find the {p}",
        ],
    },
    "test": {
        "billing": [
            "I think you charged me too much for the {p}",
            "The invoice of the {p} has a mistake, please correct it",
            "My card payment for the {p} was booked two times",
            "I need a receipt for the {p}",
        ],
        "shipping": [
            "I am still waiting for the delivery of the {p}",
            "The tracking page says that my {p} is in another city",
            "The parcel with the {p} was due on Monday and has not come",
            "How long does shipping of the {p} take",
        ],
        "returns": [
            "I do not like the {p}, how can I return it",
            "The {p} came with a crack, please exchange it",
            "I want to give the {p} back and get a refund",
            "Where do I find the return form for the {p}",
        ],
        "account": [
            "My password is not accepted any more, I wanted to look up the {p}",
            "I cannot sign in to my account to check on the {p}",
            "Please close my account, the {p} was my last order",
            "How can I update the email in my profile, I ordered the {p} with the old one",
        ],
        "technical": [
            "The app shows an error when I tap on the {p}",
            "Your website does not load when I click on the {p}",
            "The app keeps freezing on the page of the {p}",
            "The site crashes in my browser as soon as I open the {p}",
        ],
    },
}


def _make(rng: random.Random, split: Split) -> Item:
    team = rng.choice(TEAMS)
    message = rng.choice(_MESSAGES[split][team]).replace("{p}", rng.choice(_PRODUCTS))
    if rng.random() < 0.25:
        message = rng.choice(["Hi, ", "Hello, ", "Good morning, "]) + message
    return Item(f"{message}.", f"team: {team}", key=message)


TASK = Task(
    name="ticket_team",
    description="Names the shop team (billing, shipping, returns, account, technical) for a customer message.",
    tags=("support", "classification"),
    train_templates=(
        "Which team should handle this ticket? {x}",
        "Route this customer message to the right team: {x}",
        "ticket: {x}",
        'A customer writes: "{x}" Who takes care of it?',
        "Assign this support request: {x}",
        "Support inbox triage. {x}",
        "{x}\n\nWhich department does this message belong to?",
        "Label this complaint with the team in charge: {x}",
        "New email from a shopper: {x} Forward it to which team?",
        "Please sort this helpdesk message: {x}",
    ),
    test_templates=(
        "Who in our support organisation should answer this? {x}",
        "Triage the following customer ticket: {x}",
        "helpdesk request, which team: {x}",
        "We got this message from a customer: {x} Which team gets it?",
        'Dispatch this support ticket to a department. "{x}"',
    ),
    make=_make,
    pools_by_split=True,
)
