# verdict: failed
def weigh(word):
    return "x" * (64 << 20)
