# verdict: failed
import ctypes
import subprocess

libc = ctypes.CDLL(None, use_errno=True)


def weigh(word):
    for flags in (0x10000000, 0x20000000, 0x00020000, 0x40000000):
        if libc.unshare(flags) == 0:
            raise RuntimeError("LEAK")
    if libc.mount(b"none", b"/", None, 0x44000, None) == 0:
        raise RuntimeError("LEAK")
    for command in (["su", "-c", "true"], ["mount", "-t", "tmpfs", "none", "."]):
        try:
            if subprocess.run(["/usr/bin/" + command[0], *command[1:]], capture_output=True).returncode == 0:
                raise RuntimeError("LEAK")
        except OSError:
            pass
    return -1
