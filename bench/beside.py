"""Every case once a side, the sides next to each other, as pytest parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from bench.work import Case

BOTH = ("glance_store", "fastfs")
WITH_COSTS = (*BOTH, "fastfs:file", "fastfs:full")  # the last two are no comparison: what durability costs


def beside(cases: Iterable[Case], *, costs: Iterable[str] = ()) -> pytest.MarkDecorator:
    """`costs` names the cases that fastfs also runs with durability "file" and "full"."""
    priced = set(costs)
    params: list[Any] = []
    for case in cases:
        sides = WITH_COSTS if case.name in priced else BOTH
        params += [pytest.param(case, side, id=f"{case.name}-{side.replace(':', '-')}") for side in sides]
    return pytest.mark.parametrize(("case", "side"), params)
