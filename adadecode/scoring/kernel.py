"""What is asked of the Linux kernel through the C library, by the names and numbers of its headers."""

import ctypes
import os
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)

# <linux/sched.h>, <sys/mount.h>, <linux/mount.h>, <sys/prctl.h>
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, RDONLY_NOSUID_NODEV = 442, -100, 0x8000, 7
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
CAPABILITIES_V3 = 0x20080522


class RefusedError(Exception):
    """What the system does not allow that a sandbox needs."""


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mounts `source` at `target`, as the call `mount` has it; raises RefusedError."""
    source_bytes, kind_bytes = (None if text is None else text.encode() for text in (source, kind))
    needs("mount", source_bytes, target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode())


def prctl(option: int, value: int) -> None:
    """Sets something of this process, as the call `prctl` has it; raises RefusedError."""
    needs("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def needs(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises RefusedError with what it says where it fails."""
    if getattr(LIBC, name)(*arguments) == -1:
        reason = os.strerror(ctypes.get_errno())
        shown = " ".join(text.decode() for text in arguments if isinstance(text, bytes))
        raise RefusedError(f"{name}{shown and ' '}{shown}: {reason}")
