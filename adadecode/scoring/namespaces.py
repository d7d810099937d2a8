"""Namespaces for one program: a user, processes, a network and a file system of its own."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from adadecode.scoring.kernel import (
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_SETATTR,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PIVOT_ROOT,
    RDONLY_NOSUID_NODEV,
    RefusedError,
    mount,
    needs,
)

NOBODY = 65534  # what root runs a program as
FOLDER = "/tmp"  # of the program
# What a Python needs to import its library; read-only for the program.
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/nix/store", "/etc/ld.so.cache")
ALL_NEW = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def enter_namespaces() -> tuple[int, int] | None:
    """Moves into new namespaces; returns the user and group that a program is to run as, None for those of now.

    Root maps itself and NOBODY into them, so that the program is neither root nor counted as root's; others themselves.
    """
    waiting, go = os.pipe()
    this, mapper = os.getpid(), os.fork()
    if mapper == 0:
        os.close(go)
        os._exit(map_ids(this) if os.read(waiting, 1) else 1)
    os.close(waiting)
    try:
        needs("unshare", ALL_NEW)
        os.write(go, b"!")
    finally:
        os.close(go)
        mapped = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if mapped == 1:
        raise RefusedError("ids cannot be mapped into a user namespace")
    with contextlib.suppress(OSError):  # no namespaces within these, where this can be said
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    return (NOBODY, NOBODY) if mapped == 2 else None


def map_ids(pid: int) -> int:
    """Maps ids into the user namespace of `pid`; 2 where NOBODY is among them, 0 where not, 1 where nothing can be."""
    own = os.getuid(), os.getgid()
    if own[0] == 0 and write_maps(pid, [(f"{each} {each} 1\n{NOBODY} {NOBODY} 1") for each in own]):
        return 2
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        return 0 if write_maps(pid, [f"{each} {each} 1" for each in own]) else 1
    return 1


def write_maps(pid: int, maps: Iterable[str]) -> bool:
    """Writes the maps of users and of groups of `pid`; whether both were taken."""
    try:
        for name, content in zip(("uid_map", "gid_map"), maps, strict=True):
            Path(f"/proc/{pid}/{name}").write_text(content)
    except OSError:
        return False
    return True


def build_root(files_mb: int) -> None:
    """Makes a file system in memory the root: Python's library and the system's, read-only, and an empty FOLDER."""
    library = [path for path in (sys.base_prefix, sys.base_exec_prefix, *sys.path) if Path(path).is_dir()]
    shown = {*SYSTEM, *library, *map(os.path.realpath, library)}
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, f"size={files_mb}m,nr_inodes=4k,mode=755")
    before = FOLDER + "/before"
    Path(before).mkdir()
    machine = os.uname().machine
    if machine not in PIVOT_ROOT:
        raise RefusedError(f"processor {machine} is not known to it")
    needs("syscall", PIVOT_ROOT[machine], FOLDER.encode(), before.encode())
    os.chdir("/")
    for path in sorted(shown):  # what is above another first
        show(path)
    for path in DEVICES:
        show(path, read_only=False)
    needs("umount2", b"/before", MNT_DETACH)
    Path("/before").rmdir()
    Path(FOLDER).mkdir()
    Path(FOLDER).chmod(0o777)


def show(path: str, *, read_only: bool = True) -> None:
    """Shows the file, folder or link at `path` of before in the new root."""
    before, now = Path(f"/before{path}"), Path(path)
    if not (before.exists() or before.is_symlink()) or now.exists() or now.is_symlink():
        return
    now.parent.mkdir(parents=True, exist_ok=True)
    if before.is_symlink():
        now.symlink_to(before.readlink())
        return
    now.mkdir() if before.is_dir() else now.touch()
    mount(str(before), path, None, MS_BIND | MS_REC)
    if read_only:
        attributes = (ctypes.c_uint64 * 4)(RDONLY_NOSUID_NODEV, 0, 0, 0)
        needs("syscall", MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32))
