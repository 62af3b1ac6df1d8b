"""Two scenarios of the operator's plane: how fast a library fills, and how exact a key's limit is under load."""

from __future__ import annotations

import asyncio
import time

from load.adapters import name_of
from load.admin import register_all
from load.lab import Lab
from load.mix import Mixture
from load.phase import Address
from load.sections import Check, Section, checks_of

MAX_DEVIATION = 0.01
_WINDOW_S = 60
_MARGIN_S = 1.0
AIM_1000_S = 300.0


def bulk(lab: Lab, num_experts: int, parallel: int) -> Section:
    """Register many experts through the admin API, as fast as it takes them."""
    section = Section(
        "bulk",
        "Registering a library",
        f"{num_experts:,} experts, each an upload of its own, {parallel} at a time; then until the policy chooses the "
        "last one.",
    )
    with lab.site(0, name="bulk") as site:

        async def run() -> tuple[float, float | None, int]:
            client = site.client()
            admin = site.admin(client)
            started = time.perf_counter()
            done = 0

            def count() -> None:
                nonlocal done
                done += 1
                if done % 100 == 0:
                    lab.say(f"bulk: {done:,} of {num_experts:,}")

            versions = await register_all(admin, range(num_experts), parallel, count)
            taken_s = time.perf_counter() - started
            last = num_experts - 1
            version = versions[name_of(last)]
            routable_s = await admin.wait_routable(site.address.policy, last, version, 300.0)
            found = len(await admin.library())
            client.close()
            return taken_s, routable_s, found

        taken_s, routable_s, found = asyncio.run(run())
    section.facts = [
        ("registered", f"{num_experts:,} in {taken_s:.1f} s, {num_experts / taken_s:.1f} a second"),
        ("then routable by the policy after", "not in 300 s" if routable_s is None else f"{routable_s:.1f} s"),
    ]
    aim_s = AIM_1000_S * num_experts / 1000
    section.checks = [
        Check("all of them are there", f"{found:,}", found == num_experts),
        Check(f"at most {aim_s:g} s (five minutes for 1,000)", f"{taken_s:.1f} s", taken_s <= aim_s),
        Check("routable", str(routable_s is not None), routable_s is not None),
    ]
    return section


def limits(lab: Lab, rate: float, seconds: float) -> Section:
    """A key with a limit of requests a minute is offered twice as many: exactly the limit is let through."""
    limit = max(1, int(rate * seconds / 2))
    section = Section(
        "limits",
        "Exactness of a limit",
        f"A key may make {limit:,} requests a minute and makes twice as many in {seconds:g} s, {rate:g} a second, "
        "within one minute of the clock. The answers are whole, of one token.",
    )
    keys = {"admin": ["--scope", "admin", "--scope", "infer"], "limited": ["--requests-per-minute", str(limit)]}
    with lab.site(0, keys=keys, name="limits") as site:
        limited = site.secrets["limited"]
        _wait_for_room(seconds + 2 * _MARGIN_S + lab.options.warmup_s)
        mixture = Mixture(1, kinds={"base": 1}, num_tokens=1, stream=False)
        site.address = Address(site.address.port, key=limited)
        row, _ = lab.phase(site, mixture, f"{rate:g}/s", rate=rate, callers=5000, seconds=seconds, warmup_s=0.0)
    section.rows = [row]
    accepted = row.figures.num_right.total()
    section.facts = [
        ("accepted", f"{accepted:,} of {row.figures.num_sent:,}; the limit was {limit:,}"),
        ("refused with 429", f"{row.figures.num_limited:,}"),
        ("answered in all", f"{(accepted + row.figures.num_limited) / seconds:.1f} a second"),
    ]
    off = abs(accepted - limit) / limit
    section.checks = [
        *checks_of([row]),
        Check("more was asked for than allowed", f"{row.figures.num_sent:,}", row.figures.num_sent > limit * 1.2),
        Check(f"off by at most {MAX_DEVIATION:.0%}", f"{accepted - limit:+,} ({off:.2%})", off <= MAX_DEVIATION),
    ]
    return section


def _wait_for_room(needed_s: float) -> None:
    """Until so much of a minute of the clock is left; limits count by those."""
    if needed_s > _WINDOW_S:
        raise SystemExit(f"--limit-seconds may be at most {_WINDOW_S - 2 * _MARGIN_S:g}: limits are per minute.")
    left_s = _WINDOW_S - time.time() % _WINDOW_S
    if left_s < needed_s:
        time.sleep(left_s + _MARGIN_S)
