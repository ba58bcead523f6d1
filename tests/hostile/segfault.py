# verdict: crashed
import ctypes


def weigh(word):
    ctypes.string_at(0)
