# verdict: failed
def weigh(word):
    return float("nan")
