"""The Linux calls that Python 3.11 has no function for: namespaces, mounts, Landlock, seccomp, process attributes.

Everything goes through `ctypes` and the kernel's stable numbers, with no package to install. Sources: the manual pages
prctl(2), unshare(2), mount(2), pivot_root(2), mount_setattr(2), landlock(7), seccomp(2). On other systems `AVAILABLE`
is False and nothing here may be called.

Left out: cgroups (they need a writable hierarchy, which containers rarely grant), so the memory of several processes
together is bounded by (memory limit) x (process limit) and not by one figure.
"""

import ctypes
import os
import platform
import struct
import sys

AVAILABLE = sys.platform == "linux"
MACHINE = platform.machine()

NEW_MOUNT, NEW_IPC, NEW_UTS = 0x00020000, 0x08000000, 0x04000000
NEW_USER, NEW_PID, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_RECURSIVE, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
# Calls this young have the same number on every architecture.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# Calls that generated code never needs and that reach outside: sockets, tracing, namespaces and mounts, keys, bpf,
# perf, userfaultfd, io_uring (which could open sockets behind the filter), other processes' memory and descriptors,
# shared memory and queues that outlive a process.
_YOUNG = (425, 428, 429, 430, 432, 438, 442)
_DENIED = {
    "x86_64": (41, 101, 310, 311, 165, 166, 272, 308, 248, 249, 250, 321, 298, 323, 29, 64, 68, 240, *_YOUNG),
    "aarch64": (198, 117, 270, 271, 40, 39, 97, 268, 217, 218, 219, 280, 241, 282, 194, 190, 186, 180, *_YOUNG),
}
# Changes of mode, owner, times and attributes: what a program could do to files of its own user anywhere.
_MODES = {
    "x86_64": (90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280, 452, 463, 466),
    "aarch64": (5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 452, 463, 466),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(what, result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what, number, *args):
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(what, _libc.syscall(ctypes.c_long(number), *words))


def _prctl(what, option, value):
    return _checked(what, _libc.prctl(option, *(ctypes.c_ulong(word) for word in (value, 0, 0, 0))))


def become_subreaper():
    """Orphans below this process are handed to it, not to init, so it can find and end them."""
    _prctl("subreaper", _SET_SUBREAPER, 1)


def die_with_parent():
    _prctl("death signal", _SET_PDEATHSIG, 9)


def hide_memory():
    """Processes of the same user may no longer trace this one nor read its descriptors through /proc."""
    _prctl("dumpable", _SET_DUMPABLE, 0)


def show_memory():
    """Undo `hide_memory` (a change of user sets it): /proc/self belongs to the process again."""
    _prctl("dumpable", _SET_DUMPABLE, 1)


def forbid_new_privileges():
    _prctl("no_new_privs", _SET_NO_NEW_PRIVS, 1)


def unshare(flags):
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def map_own_user(uid, gid):
    """Give the user namespace that this process just entered one user and one group: its own."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(source, target, kind=None, flags=0, options=None):
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    data = None if options is None else options.encode()
    _checked(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), data))


def unmount(target):
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), MNT_DETACH))


def pivot_root(new, old):
    if MACHINE not in _PIVOT_ROOT:
        raise OSError(f"pivot_root: no call number known for {MACHINE}")
    _syscall("pivot_root", _PIVOT_ROOT[MACHINE], os.fsencode(new), os.fsencode(old))


def make_read_only(target, recursive=True):
    """Read-only and without setuid, the whole tree at once, other mount flags untouched (Linux 5.12)."""
    read_only, no_setuid, at_fdcwd, at_recursive = 1, 2, -100, 0x8000
    words = (ctypes.c_uint64 * 4)(read_only | no_setuid, 0, 0, 0)
    flags = at_recursive if recursive else 0
    _syscall(f"mount_setattr {target}", _MOUNT_SETATTR, at_fdcwd, os.fsencode(target), flags, words, 32)


# Landlock access rights, landlock(7)
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_CHANGES = sum(1 << bit for bit in (4, 5, 6, 7, 8, 9, 10, 11, 12))  # remove and make entries of every kind
_REFER = 1 << 13


class Landlock:
    """A rule set: which trees may be read, which may be written; no TCP, no signals to processes outside.

    Attributes:
        version: ABI of this kernel (1: files, 3: truncation, 4: TCP, 6: signals and abstract sockets).
    """

    def __init__(self):
        self.version = _syscall("landlock", _LANDLOCK_CREATE, None, 0, 1)
        self.handled = _WRITE_FILE | _READ_FILE | _READ_DIR | _CHANGES
        self.handled |= _REFER if self.version >= 2 else 0
        self.handled |= _TRUNCATE if self.version >= 3 else 0
        network = 0b11 if self.version >= 4 else 0
        scopes = 0b11 if self.version >= 6 else 0
        size = 8 if self.version < 4 else 16 if self.version < 6 else 24
        words = (ctypes.c_uint64 * 3)(self.handled, network, scopes)
        self.fd = _syscall("landlock", _LANDLOCK_CREATE, words, size, 0)

    def _allow(self, path, rights):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= ~(_READ_DIR | _CHANGES | _REFER)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights & self.handled, fd), 12)
            _syscall(f"landlock {path}", _LANDLOCK_ADD, self.fd, 1, rule, 0)
        finally:
            os.close(fd)

    def allow_reading(self, path, hidden=()):
        """`path` and all below may be read, except the folders in `hidden`: the way to those is listed, not opened."""
        below = [folder for folder in hidden if folder == path or folder.startswith(path.rstrip("/") + "/")]
        if path in below or os.path.islink(path):
            return
        if not below:
            self._allow(path, _READ_FILE | _READ_DIR)
            return
        self._allow(path, _READ_DIR)
        for name in os.listdir(path):
            self.allow_reading(os.path.join(path, name), below)

    def allow_writing(self, path):
        self._allow(path, self.handled)

    def enforce(self):
        """From here on, for this process and its children; needs `forbid_new_privileges` first."""
        _syscall("landlock", _LANDLOCK_RESTRICT, self.fd, 0)


def deny_calls(modes):
    """A seccomp filter that answers EPERM to the calls in `_DENIED` and to every call of a foreign architecture.

    With `modes`, also to changes of mode, owner, times and attributes of files.
    """
    if MACHINE not in _DENIED:
        raise OSError(f"seccomp: no call numbers known for {MACHINE}")
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001
    code = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH[MACHINE]), (give, 0, 0, refuse), (load, 0, 0, 0)]
    for number in _DENIED[MACHINE] + (_MODES[MACHINE] if modes else ()):
        code += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse), (give, 0, 0, allow)]
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    instructions = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(len(code), ctypes.addressof(instructions))
    words = (ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0))
    _checked("seccomp", _libc.prctl(_SET_SECCOMP, *words))
