# verdict: failed, crashed
import os
import signal


def weigh(word):
    for pid in (int("@HARNESS@"), os.getppid(), 1, -1, 0):
        try:
            os.kill(pid, signal.SIGKILL if pid > 0 else signal.SIGTERM)
        except OSError:
            pass
    return -1
