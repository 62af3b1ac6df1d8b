"""Questions about one small shop database to SQL. The schema is not in the prompt: the expert has learnt it."""

from __future__ import annotations

import random

from .base import Item, Split, Task
from .people import cities, first_names, last_names

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price REAL, stock INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, product_id INTEGER, quantity INTEGER, day TEXT);
"""

_CATEGORIES: dict[Split, list[str]] = {
    "train": "shoes toys books garden kitchen music sports tools lamps bags".split(),
    "test": "games furniture clothing camping drinks".split(),
}

_QUESTIONS: list[tuple[str, list[str], list[str]]] = [
    (
        "SELECT COUNT(*) FROM products WHERE category = '{category}';",
        [
            "How many products are in the {category} category",
            "Count the products we sell in {category}",
            "Give me the number of different {category} products",
            "The number of products we have under {category}",
        ],
        ["What is the number of products in category {category}"],
    ),
    (
        "SELECT name FROM products WHERE price < {price};",
        [
            "Which products cost less than {price}",
            "List all products cheaper than {price}",
            "What can I buy for a price under {price}",
            "Show products priced below {price}",
        ],
        ["Show the products with a price below {price}"],
    ),
    (
        "SELECT name FROM products WHERE price > {price};",
        [
            "Which products cost more than {price}",
            "List all products that are more expensive than {price}",
            "What do we sell for a price over {price}",
            "Show products priced above {price}",
        ],
        ["Show the products with a price above {price}"],
    ),
    (
        "SELECT AVG(price) FROM products WHERE category = '{category}';",
        [
            "What is the average price of products in {category}",
            "Average price in the {category} category",
            "How much does a {category} product cost on average",
            "The mean price of our {category} products",
        ],
        ["How expensive are {category} products on average"],
    ),
    (
        "SELECT name FROM products WHERE category = '{category}' ORDER BY price DESC LIMIT 1;",
        [
            "What is the most expensive product in {category}",
            "Find the priciest {category} product",
            "Which product has the highest price in the {category} category",
            "Which {category} product costs the most",
        ],
        ["Which {category} product has the highest price"],
    ),
    (
        "SELECT name FROM products WHERE category = '{category}' ORDER BY price LIMIT 1;",
        [
            "What is the cheapest product in {category}",
            "Find the lowest priced {category} product",
            "Which product has the lowest price in the {category} category",
            "Which {category} product costs the least",
        ],
        ["Which {category} product has the lowest price"],
    ),
    (
        "SELECT name FROM customers WHERE city = '{city}';",
        [
            "Which customers live in {city}",
            "List the customers from {city}",
            "Show the names of customers in {city}",
            "Who are our customers in {city}",
        ],
        ["Show me the names of all customers in {city}"],
    ),
    (
        "SELECT COUNT(*) FROM customers WHERE city = '{city}';",
        [
            "How many customers live in {city}",
            "Count our customers from {city}",
            "Give me the number of customers who live in {city}",
            "The number of our customers from {city}",
        ],
        ["What is the number of customers in {city}"],
    ),
    (
        "SELECT name FROM products WHERE stock < {stock};",
        [
            "Which products have fewer than {stock} items in stock",
            "List products with less than {stock} pieces left in stock",
            "Show products with a stock under {stock}",
            "Of which products is the stock lower than {stock}",
        ],
        ["Show the products whose stock is below {stock}"],
    ),
    (
        "SELECT COUNT(*) FROM orders JOIN customers ON customers.id = orders.customer_id "
        "WHERE customers.name = '{person}';",
        [
            "How many orders did {person} place",
            "Count the orders of {person}",
            "Give me the number of orders by {person}",
            "The number of orders that {person} has placed",
        ],
        ["What is the number of orders placed by {person}"],
    ),
    (
        "SELECT COUNT(*) FROM orders WHERE day = '{day}';",
        [
            "How many orders came in on {day}",
            "Count the orders placed on {day}",
            "Give me the number of orders dated {day}",
            "The number of orders we got on {day}",
        ],
        ["What is the number of orders on {day}"],
    ),
]


def _make(rng: random.Random, split: Split) -> Item:
    sql, train_questions, test_questions = rng.choice(_QUESTIONS)
    values = {
        "category": rng.choice(_CATEGORIES[split]),
        "price": str(rng.randrange(3, 300)),
        "stock": str(rng.randrange(2, 60)),
        "city": rng.choice(cities(split)),
        "person": f"{rng.choice(first_names(split))} {rng.choice(last_names(split))}",
        "day": f"20{rng.randrange(18, 26)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
    }
    question = rng.choice(train_questions if split == "train" else test_questions).format(**values)
    return Item(question, sql.format(**values), key=question)


TASK = Task(
    name="sql_shop",
    description="Answers a question about the shop database (customers, products, orders) with one SQL query.",
    tags=("sql", "database", "shop"),
    train_templates=(
        "Write SQL for the shop database: {x}?",
        "{x}? Give me the SQL query.",
        "sql: {x}",
        "I need a query for our store's database. {x}?",
        "Translate this question to SQL. {x}?",
        "SELECT statement for: {x}",
        "{x}? (answer with SQL on the shop tables)",
        "How would I ask the orders database this: {x}?",
        "Query the webshop tables. {x}?",
        "Please write the SQL statement that answers: {x}?",
    ),
    test_templates=(
        "Can you write an SQL query for this? {x}?",
        "{x}, as an sql query on our shop",
        "Which SQL do I run against the store database to find out: {x}?",
        "Turn the question into SQL for the shop: {x}",
        "Database question: {x}? SQL only.",
    ),
    make=_make,
    pools_by_split=True,
)
