"""What the extension has lost of its memory, by the reports of LeakSanitizer that processes wrote to LOG.PID.

    python tests/faults/leaks.py LOG           # prints what is lost and ends with 1 if anything is
    python tests/faults/leaks.py --seed        # loses an object of the extension, to be found

Other programs that the tests start (git, tar) lose some, too: what counts was allocated below a function of ours.
"""

from __future__ import annotations

import ctypes
import glob
import re
import sys

OURS = re.compile(r"^\s*#\d+ .* in \w+ (ext/|.*/_native\.)", re.MULTILINE)


def lost(report: str) -> list[str]:
    """The leaks of a report that were allocated by the extension, or by Python on its behalf."""
    return [leak for leak in re.split(r"\n\s*\n", report) if " leak of " in leak and OURS.search(leak)]


def lose() -> None:
    from fastfs import _native

    pump = _native.Pump(-1, [_native.EngineDigest("sha512")])
    pump.feed(bytes(100))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pump))


def main() -> None:
    if sys.argv[1:] == ["--seed"]:
        lose()
        return
    files = glob.glob(glob.escape(sys.argv[1]) + ".*")
    found = []
    for path in files:
        with open(path, errors="replace") as file:
            found += lost(file.read())
    for leak in found[:20]:
        print(leak)
    print(f"{len(found)} leaks of the extension's memory in {len(files)} reports")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
