"""Log lines: one JSON object each, of our own loggers and of libraries', with the ids of the request."""

import json
import subprocess
import sys

SCRIPT = """
import logging
import structlog
from server.telemetry.logs import configure_logging

configure_logging("info", "json")
structlog.get_logger("ours").info("before")
structlog.contextvars.bind_contextvars(request_id="r1", trace_id="t1")
structlog.get_logger("ours").info("ours", key="value")
logging.getLogger("theirs").warning("theirs %d", 1)
"""


def test_every_line_in_a_requests_context_has_its_ids() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, ours, theirs = map(json.loads, ran.stderr.splitlines())
    assert "request_id" not in before
    assert (ours["event"], ours["key"], ours["level"]) == ("ours", "value", "info")
    assert theirs["event"] == "theirs 1"
    for line in (ours, theirs):
        assert (line["request_id"], line["trace_id"]) == ("r1", "t1")
        assert line["time"].startswith("20")
