# verdict: timeout, failed, crashed, memory
import os


def weigh(word):
    while True:
        try:
            os.fork()
        except OSError:
            pass
