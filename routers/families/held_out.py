"""Calibration on a library's own examples, each scored as a prompt while it is held out.

A router says what it makes of the held-out examples (`HeldOut`); threshold, confidence and the expected decisions
follow from that (`calibrate_on`). `calibration_for` skips all of it while an earlier calibration still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routers.base import FitData, Floats
from routers.families.calibration import Calibration, calibrate, fingerprints_of
from routers.families.options import CalibrationOptions


class HeldOut(NamedTuple):
    """What a router makes of some held-out examples: n of them scored without themselves, m without their expert.

    Attributes:
        evidence: Evidence for the first choice when only the example is held out, shape (n,).
        is_right: Whether the example's own expert is the first choice, shape (n,).
        first: Number of the first choice, shape (n,).
        margins: Score of the first choice minus score of the second, shape (n,); 1 if there is no second.
        unknown: Evidence for the first choice when the example's whole expert is held out, shape (m,).
    """

    evidence: Floats
    is_right: NDArray[np.bool_]
    first: NDArray[np.int64]
    margins: Floats
    unknown: Floats


def calibrate_on(
    blocks: Sequence[HeldOut], experts: Sequence[str], options: CalibrationOptions, *, has_margin: bool = True
) -> Calibration:
    """Calibrate on held-out examples.

    Args:
        blocks: The examples, some in each block.
        experts: Ids of all experts, by number.
        options: Assumed share of in-library prompts, and the threshold if the user set one.
        has_margin: Whether the router's confidence depends on the margin.
    """
    evidence, is_right, first, margins, unknown = _joined(blocks)
    calibration = calibrate(evidence, is_right, margins, unknown, options.in_library_share)
    chosen = [experts[number] for number in first.tolist()]
    return calibration.with_left_out(chosen, evidence, margins if has_margin else None, options.threshold)


def calibration_for(
    data: FitData, kind: type[Any], config: CalibrationOptions, calibrate_again: Callable[[], Calibration]
) -> Calibration:
    """Return the calibration of the router in service if it still holds, else the result of `calibrate_again`.

    Args:
        data: The library, with the router in service as `previous`.
        kind: Class of the router that is being fitted; it has the attributes ``config`` and ``calibration``.
        config: Options of the router that is being fitted.
        calibrate_again: Calibrates on the library's examples.
    """
    fingerprints = fingerprints_of(data.experts)
    previous = data.previous
    if isinstance(previous, kind) and previous.config == config and previous.calibration.holds_for(fingerprints):
        kept: Calibration = previous.calibration
        return kept
    return replace(calibrate_again(), fitted_to=fingerprints)


def _joined(blocks: Sequence[HeldOut]) -> HeldOut:
    if not blocks:
        return HeldOut(np.empty(0), np.empty(0, bool), np.empty(0, np.int64), np.empty(0), np.empty(0))
    return HeldOut(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
