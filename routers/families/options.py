"""Options that routers of several families have."""

from __future__ import annotations

from pydantic import Field

from routers.base import RouterConfig

IN_LIBRARY_SHARE = 0.93
"""Default share of the prompts that are assumed to have an expert.

On public tasks (docs/measurements/policies.md) routers with this default leave about four in five out-of-scope prompts
to the base.
"""

THRESHOLD_HELP = (
    "Abstain below this evidence (the score, adjusted for how typical it is of the expert); unset: calibrated from the "
    "library's own examples."
)


class CandidateOptions(RouterConfig):
    """Options of routers that list the experts they scored."""

    max_candidates: int = Field(10, ge=1, description="Number of scored experts that a decision lists at most.")


class CalibrationOptions(CandidateOptions):
    """Options of routers that calibrate their threshold and confidence on the library's own examples."""

    threshold: float | None = Field(None, description=THRESHOLD_HELP)
    in_library_share: float = Field(
        IN_LIBRARY_SHARE,
        gt=0,
        lt=1,
        description="Assumed share of the prompts that have an expert; lower it to abstain more often.",
    )
    max_calibration: int = Field(2048, ge=0, description="Number of examples that are scored to calibrate, at most.")
