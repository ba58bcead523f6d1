# verdict: failed
import sys


def weigh(word):
    return sys.stdin.read() or input()
