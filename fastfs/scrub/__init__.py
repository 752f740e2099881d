# SPDX-License-Identifier: Apache-2.0
"""Look at what is stored, years later: scrub, quarantine, repair, adopt, and the space that it takes."""

from __future__ import annotations

from fastfs.scrub.adopt import Adopt, Adopted, Comparison, Expected, checked_expectations
from fastfs.scrub.finding import Finding, Mode, Status
from fastfs.scrub.limits import Priority
from fastfs.scrub.repair import Repaired, repair
from fastfs.scrub.run import Progress, Scrub, Summary, check_image
from fastfs.scrub.space import Space, space_of

__all__ = [
    "Adopt",
    "Adopted",
    "Comparison",
    "Expected",
    "Finding",
    "Mode",
    "Priority",
    "Progress",
    "Repaired",
    "Scrub",
    "Space",
    "Status",
    "Summary",
    "check_image",
    "checked_expectations",
    "repair",
    "space_of",
]
