# verdict: timeout
import signal

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def weigh(word):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
