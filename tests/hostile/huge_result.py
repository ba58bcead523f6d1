# verdict: failed, timeout
def weigh(word):
    return "x" * (64 << 20)
