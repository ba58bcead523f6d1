# verdict: failed
def weigh(word):
    return 1 << (8 << 20)
