# verdict: failed, crashed
import ctypes
import glob
import os

libc = ctypes.CDLL(None, use_errno=True)


def weigh(word):
    pids = {int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*")}
    for pid in (pids | {int("@HARNESS@"), os.getppid(), *range(1, 40)}) - {os.getpid()}:
        for name in ("mem", "fd/0", "fd/1", "fd/4", "fd/5", "maps"):
            try:
                with open(f"/proc/{pid}/{name}", "rb+" if name == "mem" else "rb", buffering=0) as file:
                    file.read(10)
                raise RuntimeError("LEAK")
            except OSError:
                pass
        if libc.ptrace(16, pid, 0, 0) == 0:
            raise RuntimeError("LEAK")
    return -1
