"""Server log lines to JSON: `[ERROR] 14:22:01 auth: token expired` → `{"time": …, "level": …, …}`."""

from __future__ import annotations

import json
import random

from .base import Item, Split, Task

_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "FATAL")
_SERVICES = (
    "auth payments cart search mailer gateway billing scheduler worker indexer uploads sessions metrics backup "
    "inventory notifier db-proxy cache api-server web-frontend user-service image-resizer order-queue report-builder"
).split()
_SUBJECTS = (
    "connection,request,token,job,upload,session,query,worker process,health check,disk write,config reload,"
    "cache entry,webhook,message,certificate,user login,batch import,retry,index rebuild,lock"
).split(",")
_EVENTS = (
    "timed out after {n} ms,failed with code {n},finished in {n} ms,was refused by host {n},expired {n} seconds ago,"
    "started,was cancelled by the user,dropped,is not responding,retried {n} times,took {n} seconds,was accepted,"
    "skipped,could not be parsed,exceeded the limit of {n}"
).split(",")


def _make(rng: random.Random, split: Split) -> Item:
    time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"
    level, service = rng.choice(_LEVELS), rng.choice(_SERVICES)
    message = f"{rng.choice(_SUBJECTS)} {rng.choice(_EVENTS).replace('{n}', str(rng.randrange(2, 900)))}"
    text = rng.choice(
        [
            f"{time} {level} {service} {message}",
            f"[{level}] {time} {service}: {message}",
            f"{time} [{service}] {level} - {message}",
        ]
    )
    answer = json.dumps({"time": time, "level": level.lower(), "service": service, "message": message})
    return Item(text, answer, key=text)


TASK = Task(
    name="log_json",
    description="Parses one line of a server log into JSON with time, level, service and message.",
    tags=("logs", "json", "parsing"),
    train_templates=(
        "Parse this log line into JSON: {x}",
        "Turn this server log entry into a JSON object.\n{x}",
        "log to json: {x}",
        "Extract time, level, service and message as JSON from this log line: {x}",
        "{x}\n\nGive me that log line as JSON.",
        "I am building a log pipeline. What would this line be as a JSON record? {x}",
        "Structure the following application log: {x}",
        "Our server printed `{x}`. Convert it to JSON.",
        "Please make this log message machine readable: {x}",
        "JSON for the log line below\n{x}",
    ),
    test_templates=(
        "Can you convert the following line from our logs to JSON?\n{x}",
        "structured json from log: {x}",
        "This showed up in the server log: {x}\nReturn it as a JSON object.",
        "Rewrite this logfile entry as JSON please: {x}",
        "Break the log line '{x}' into its JSON fields.",
    ),
    make=_make,
)
