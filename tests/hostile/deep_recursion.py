# verdict: failed, memory, crashed, timeout
import sys

sys.setrecursionlimit(10**9)


def weigh(word):
    return weigh(word) + 1
