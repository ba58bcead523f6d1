# verdict: failed, timeout
def weigh(word):
    return 1 << (8 << 20)
