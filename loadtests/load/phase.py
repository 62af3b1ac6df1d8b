"""One phase of load: what the driver is told, and what it found. Both travel as JSON between two processes.

Moments are ``time.perf_counter()`` seconds, which on Linux are the same in every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from load.mix import Mixture


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway is.

    Attributes:
        key: API key with the scopes infer and admin, if it needs one.
        base: What the base is called.
        policy: The policy that routes.
        template: Folder of an adapter that fits the gateway's base; None for the packaged base.
    """

    port: int
    host: str = "127.0.0.1"
    tls: bool = False
    key: str | None = None
    base: str = "base"
    policy: str = "auto"
    template: str | None = None


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to do.

    Attributes:
        address: The gateway.
        mixture: The requests.
        library: Name to version of the experts that stay.
        seconds: Length of the measured part.
        warmup_s: Before it, the same load.
        rate: Requests a second of an open loop with Poisson arrivals; None is a closed loop.
        callers: Of a closed loop; in an open one the most requests under way.
        burst: Every fifth part of `burst_period_s` has this many times the rate, and the rest less; 1 is even.
        burst_period_s: Length of one burst and the calm after it.
        changes_per_s: Registrations, new versions and removals meanwhile.
        num_changing: Experts that come and go, numbered on from the mixture's.
        seed: Of everything that is drawn.
        patience_s: Wait for the last answers.
    """

    address: Address
    mixture: Mixture
    library: Mapping[str, str]
    seconds: float
    warmup_s: float
    rate: float | None
    callers: int
    burst: float = 1.0
    burst_period_s: float = 5.0
    changes_per_s: float = 0.0
    num_changing: int = 20
    seed: int = 1
    patience_s: float = 30.0

    def dump(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, text: bytes) -> LoadSpec:
        """The inverse of `dump`."""
        fields: dict[str, Any] = orjson.loads(text)
        parts = {"address": Address(**fields["address"]), "mixture": Mixture(**fields["mixture"])}
        return cls(**fields | parts)


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that was not as it should be.

    Attributes:
        sent, done: When.
        what: In few words.
        kind: How the expert was named.
    """

    sent: float
    done: float
    what: str
    kind: str
    detail: str = ""


@dataclass(slots=True)
class LoadResult:
    """What came back. Lists hold one number for each good answer that was due in the measured part.

    Attributes:
        started: When the measured part began.
        seconds: How long it was.
        num_sent: Requests of the measured part that were sent.
        num_right: Answers by the right experts, by kind, warm-up included.
        num_absent: 404 for what was not in the library, as it should be.
        num_changing: Answers while their expert was being changed, where either is right.
        num_echoed: Answers of which the engine itself said who made them.
        num_limited: 429.
        num_unsent: Not sent, for too many were under way: the gateway did not keep up with the rate.
        faults: Everything else; the first 10,000.
        num_faults: All of them.
        due: When each answer was due to be sent, in seconds since `started`.
        ttft_ms, tpot_ms, total_ms: Time to the first byte, per token after it, and to the last; from when it was due.
        lag_ms: How late it was really sent.
        changes: Acknowledged changes of the library, by what they did.
        change_ms: Time of each.
        routable_ms: Time from each acknowledged registration until the policy chose the new version.
        library: What the library should hold at the end.
    """

    started: float
    seconds: float
    num_sent: int = 0
    num_right: dict[str, int] = field(default_factory=dict)
    num_absent: int = 0
    num_changing: int = 0
    num_echoed: int = 0
    num_limited: int = 0
    num_unsent: int = 0
    num_faults: int = 0
    faults: list[Fault] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    change_ms: list[float] = field(default_factory=list)
    routable_ms: list[float] = field(default_factory=list)
    library: dict[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, text: bytes) -> LoadResult:
        """The inverse of `dump`."""
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**fields | {"faults": [Fault(**fault) for fault in fields["faults"]]})
