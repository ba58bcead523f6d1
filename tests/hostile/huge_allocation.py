# verdict: memory
def weigh(word):
    return len(bytearray(10 * 2**30))
