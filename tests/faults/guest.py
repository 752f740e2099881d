"""A second kernel to break: user-mode Linux, booted in two seconds, with an NFS server and its clients inside.

    python tests/faults/guest.py 'ls /mnt/4.2/a'      # a shell's command, in the guest

Needs root and Debian's packages user-mode-linux, nfs-kernel-server and kmod.  The guest has the host's file system,
read-only, one processor, and mounts of its own: see guest_init.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from shim import HERE, shared_object

NEEDED = {
    "linux.uml": "user-mode-linux",
    "rpc.nfsd": "nfs-kernel-server",
    "rpcbind": "rpcbind",
    "modprobe": "kmod",
    "mkfs.ext4": "e2fsprogs",
}


class NotBootedError(OSError):
    """This machine cannot run a guest: its kernel did not come so far as to its first process."""


def missing() -> str:
    """What keeps a guest from being booted here; "" if nothing does."""
    if os.geteuid() != 0:
        return "only root can serve NFS"
    for program, package in NEEDED.items():
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return f"{program} is not installed (Debian's package {package})"
    return ""


def run(job: str, size: int = 256 << 20, seconds: float = 240) -> str:
    """What a shell's command prints in a guest.  One that does not come up (a busy machine) is booted once more.

    :param size: of the file system that is exported, in bytes.
    :raises NotBootedError: no guest can be booted here.
    :raises OSError: the guest did not come up, or the command failed; with what was printed.
    """
    status, printed = booted(job, size, seconds)
    if not status.isdigit():
        status, printed = booted(job, size, seconds)
    if status != "0":
        trouble = OSError if status else NotBootedError
        raise trouble(f"the guest failed: {printed[-5000:]}")
    return printed


def booted(job: str, size: int, seconds: float) -> tuple[str, str]:
    """The job's exit code ("begun": it has none; "": there is no first process even), and what it printed."""
    with tempfile.TemporaryDirectory(prefix="fastfs-guest-") as folder:
        out = Path(folder)
        (out / "job").write_text(job)
        command = ["linux.uml", "mem=1536M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'guest_init'}"]
        command += ["con=null", "con0=fd:0,fd:1", "quiet", f"SIZE={size}", f"OUT={folder}"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LD_PRELOAD": str(shared_object("guest_ptrace"))},
        )
        try:
            said = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            end(process)
            said = process.communicate()[0]
        finally:
            end(process)
        printed = (out / "printed").read_text() if (out / "printed").exists() else said.decode(errors="replace")
        status = (out / "status").read_text().strip() if (out / "status").exists() else ""
        return status, printed


def end(process: subprocess.Popen[bytes]) -> None:
    """Each process of the guest is one of the host's: none may be left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("job", help="a shell's commands")
    parser.add_argument("--seconds", type=float, default=240, help="to give it")
    arguments = parser.parse_args()
    print(run(arguments.job, seconds=arguments.seconds))
