# verdict: failed, timeout
import itertools


def weigh(word):
    return itertools.repeat(itertools.repeat(1))
