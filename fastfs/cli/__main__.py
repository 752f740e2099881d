# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfs.cli``: the command where its script is not on the path."""

from __future__ import annotations

import sys

from fastfs.cli import main

sys.exit(main())
