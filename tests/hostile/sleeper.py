# verdict: timeout
import time


def weigh(word):
    time.sleep(600)
