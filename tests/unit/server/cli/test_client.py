"""What the command line shows of a gateway's errors."""

import orjson

from adapters_registry.errors import InvalidAdapter, Problem
from server.cli.client import explain
from server.errors import error_body, from_lower


def test_each_problem_is_shown_once_below_its_title() -> None:
    refused = InvalidAdapter([Problem("files", "no weights", "Add them."), Problem("r", "is 0", "Make it larger.")])
    shown = explain(orjson.loads(error_body(from_lower(refused))), 400)
    assert shown.splitlines()[0] == "The adapter was refused."
    assert [shown.count(text) for text in ("no weights", "Add them.", "is 0", "Make it larger.")] == [1, 1, 1, 1]


def test_an_error_without_problems_is_shown_as_it_is() -> None:
    assert explain({"error": {"message": "No. Not so."}}, 400) == "No. Not so."
    assert explain([], 502) == "the gateway answers 502"
