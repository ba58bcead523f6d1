# verdict: failed, timeout, crashed
def weigh(word):
    # ints that are equal modulo 2**61 - 1 have equal hashes: the reader's set would take quadratic time
    return {(2**61 - 1) * n: None for n in range(2000)} | {"more": [(2**61 - 1) * n for n in range(100_000)]}
