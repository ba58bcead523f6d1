# verdict: timeout, failed, crashed
import threading


def forever():
    while True:
        pass


def weigh(word):
    while True:
        try:
            threading.Thread(target=forever).start()
        except RuntimeError:
            return -1
