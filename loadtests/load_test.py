"""Load tests that know which expert should answer: ``python loadtests/load_test.py SCENARIO …``.

Every scenario starts a fake engine and a gateway of its own, fills its library through the admin API, and sends
requests in an open loop from another process. Every answer is judged: is it whole, and did the experts make it that
should have. With --url the scenarios that kill nothing run against a gateway that is there, in front of a real engine.
Ends with 1 if an expert was wrong, a request failed without a reason, or something acknowledged was lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from bench.machine import machine_facts, shown_command
from bench.processes import Children, NotReady
from load.durability import Storm, durability
from load.figures import Slo
from load.html import page
from load.lab import Lab, LabOptions
from load.limits import bulk, limits
from load.phase import Address
from load.scenarios import SCENARIOS, Grid, grid
from load.sections import Section
from load.soak import soak
from load.stack import EngineOptions, split_cores

KEY_VARIABLE = "MOERGATE_LOAD_KEY"
NEEDS_OWN = frozenset({"engine-killed", "gateway-killed", "limits", "durability"})


def scenarios(given: argparse.Namespace) -> dict[str, Callable[[Lab], Section]]:
    """Every scenario by its name."""
    cells = Grid(tuple(given.grid_experts), tuple(given.grid_skew), tuple(given.grid_words), tuple(given.grid_callers))
    database_share = 0.3 if given.postgresql else 0.0
    storm = Storm(given.orders, given.order_seconds, given.workers, given.uptime_s, 0.2, database_share, given.seed)
    return {
        "grid": lambda lab: grid(lab, cells),
        **SCENARIOS,
        "bulk": lambda lab: bulk(lab, given.bulk_experts, given.parallel),
        "limits": lambda lab: limits(lab, given.limit_rate, given.limit_seconds),
        "durability": lambda lab: durability(lab, storm),
        "soak": lambda lab: soak(lab, given.soak_seconds),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ["grid", *SCENARIOS, "bulk", "limits", "durability", "soak"]
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("scenario", nargs="+", choices=[*names, "all"], help=f"one or more of: {', '.join(names)}, all")
    common = made.add_argument_group("load")
    common.add_argument("--seconds", type=float, default=20.0, help="length of a measured part (%(default)s)")
    common.add_argument(
        "--repeats", type=int, default=1, help="times that a cell of the grid is measured (%(default)s)"
    )
    common.add_argument("--experts", type=int, default=100, help="size of the library (%(default)s)")
    common.add_argument("--skew", type=float, default=1.0, help="Zipf's exponent; 0 asks all alike (%(default)s)")
    common.add_argument("--words", type=int, default=24, help="length of a prompt (%(default)s)")
    common.add_argument("--tokens", type=int, default=16, help="length of an answer (%(default)s)")
    common.add_argument(
        "--callers", type=int, default=64, help="of the closed loop that measures saturation (%(default)s)"
    )
    common.add_argument("--load-share", type=float, default=0.7, help="of saturation, in open loops (%(default)s)")
    common.add_argument("--rate", type=float, help="requests a second of open loops, instead")
    common.add_argument("--slo-ttft-ms", type=float, default=200.0, help="goodput counts answers within (%(default)s)")
    common.add_argument("--slo-tpot-ms", type=float, default=50.0, help="and within, per token (%(default)s)")
    common.add_argument("--seed", type=int, default=1, help="of everything that is drawn (%(default)s)")
    _add_own(made)
    own = made.add_argument_group("scenarios")
    own.add_argument("--grid-experts", type=int, nargs="+", default=[1, 10, 100, 1000])
    own.add_argument("--grid-skew", type=float, nargs="+", default=[0.0, 1.0])
    own.add_argument("--grid-words", type=int, nargs="+", default=[24, 1000])
    own.add_argument("--grid-callers", type=int, nargs="+", default=[8, 64])
    own.add_argument("--bulk-experts", type=int, default=1000, help="registered at once (%(default)s)")
    own.add_argument("--parallel", type=int, default=8, help="of them at a time (%(default)s)")
    own.add_argument("--limit-rate", type=float, default=500.0, help="requests a second (%(default)s)")
    own.add_argument("--limit-seconds", type=float, default=40.0, help="within one minute (%(default)s)")
    own.add_argument("--orders", type=int, default=300, help="changes of 'durability' (%(default)s)")
    own.add_argument("--order-seconds", type=float, default=7200.0, help="no new ones after so long (%(default)s)")
    own.add_argument("--workers", type=int, default=8, help="that make them at once (%(default)s)")
    own.add_argument("--uptime-s", type=float, default=4.0, help="between two kills, on average (%(default)s)")
    own.add_argument(
        "--postgresql", action="store_true", help="'durability' with a PostgreSQL of its own, which is killed, too"
    )
    own.add_argument("--soak-seconds", type=float, default=3600.0, help="length of 'soak' (%(default)s)")
    out = made.add_argument_group("report")
    out.add_argument("--out", type=Path, help="folder for report.md and report.html; the first is printed too")
    return made


def _add_own(made: argparse.ArgumentParser) -> None:
    engine = made.add_argument_group("the fake engine and the gateway")
    engine.add_argument("--ttft-ms", type=float, default=5.0, help="of the fake engine (%(default)s)")
    engine.add_argument("--tokens-per-s", type=float, default=500.0, help="of the fake engine (%(default)s)")
    engine.add_argument("--slots", type=int, default=64, help="experts that it says are resident (%(default)s)")
    engine.add_argument("--gateway-arg", action="append", default=[], help="passed on to moergate serve; repeat")
    engine.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give the gateway half of the processors for itself (default: %(default)s)",
    )
    remote = made.add_argument_group("a gateway that is there")
    remote.add_argument("--url", help=f"its root; its key with the scopes infer and admin goes into ${KEY_VARIABLE}")
    remote.add_argument("--base", default="base", help="what it calls the base (%(default)s)")
    remote.add_argument("--policy", default="auto", help="the policy that is asked (%(default)s)")
    remote.add_argument("--template", type=Path, help="PEFT folder that fits its base; default: the packaged base's")


def options_of(given: argparse.Namespace) -> LabOptions:
    """What all scenarios need."""
    return LabOptions(
        remote=_address(given),
        seconds=given.seconds,
        warmup_s=min(2.0, given.seconds / 4),
        repeats=given.repeats,
        experts=given.experts,
        skew=given.skew,
        num_words=given.words,
        num_tokens=given.tokens,
        callers=given.callers,
        load_share=given.load_share,
        rate=given.rate,
        slo=Slo(given.slo_ttft_ms, given.slo_tpot_ms),
        engine=EngineOptions(given.ttft_ms, given.tokens_per_s, given.slots),
        gateway_arguments=tuple(given.gateway_arg),
        gateway_cores=None if given.url else split_cores(given.pin),
        seed=given.seed,
    )


def _address(given: argparse.Namespace) -> Address | None:
    if not given.url:
        return None
    parts = urlsplit(given.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise SystemExit(f"--url {given.url!r} must be the gateway's root, such as http://127.0.0.1:8000.")
    is_tls = parts.scheme == "https"
    return Address(
        port=parts.port or (443 if is_tls else 80),
        host=parts.hostname,
        tls=is_tls,
        key=os.environ.get(KEY_VARIABLE),
        base=given.base,
        policy=given.policy,
        template=str(given.template) if given.template else None,
    )


def setup_of(given: argparse.Namespace, options: LabOptions) -> dict[str, str]:
    """What the report says of the run."""
    engine = options.engine
    fake = f"fake, {engine.ttft_ms:g} ms to the first token, {engine.tokens_per_s:g} tokens/s, {engine.slots} slots"
    cores = options.gateway_cores
    return machine_facts() | {
        "command": f"`{shown_command('load_test.py', sys.argv[1:])}`",
        "gateway": given.url or f"of its own, {'on cores ' + str(sorted(cores)) if cores else 'sharing all cores'}",
        "engine": "the gateway's" if given.url else fake,
        "SLO": f"first token within {options.slo.ttft_ms:g} ms, {options.slo.tpot_ms:g} ms per token after it",
        "times": "in ms, from the moment at which a request was due; percentiles over right answers",
    }


def run(given: argparse.Namespace, options: LabOptions) -> list[Section]:
    """Carry the scenarios out, one after the other."""
    known = scenarios(given)
    asked = list(known) if "all" in given.scenario else given.scenario
    if given.url:
        asked = [name for name in asked if "all" not in given.scenario or name not in NEEDS_OWN]
        if needs := NEEDS_OWN & set(asked):
            raise SystemExit(f"{', '.join(sorted(needs))}: needs a gateway of its own, so leave --url away.")
    sections = []
    with tempfile.TemporaryDirectory(prefix="moergate-load-") as name, Children(Path(name)) as children:
        lab = Lab(options, children, Path(name), say)
        for scenario in asked:
            say(f"--- {scenario}")
            sections.append(known[scenario](lab))
    return sections


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run, report, and end with 1 if anything did not hold."""
    given = parser().parse_args()
    if not Path("/proc/self/stat").exists():
        sys.exit("The load tests read CPU time and memory from /proc, which only Linux has.")
    signal.signal(signal.SIGTERM, _on_signal)
    options = options_of(given)
    setup = setup_of(given, options)
    try:
        sections = run(given, options)
    except NotReady as error:
        sys.exit(str(error))
    facts = "\n".join(f"- {name}: {value}" for name, value in setup.items())
    report = "\n\n".join([facts, *(section.markdown() for section in sections)]) + "\n"
    print(report)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "report.md").write_text(report, "utf-8")
        (given.out / "report.html").write_text(page("Moergate under load", setup, sections), "utf-8")
    if failed := [section.name for section in sections if not section.holds]:
        sys.exit(f"Did not hold: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
