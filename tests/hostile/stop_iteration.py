# verdict: failed
def weigh(word):
    raise StopIteration
