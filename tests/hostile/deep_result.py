# verdict: failed, crashed
def weigh(word):
    result = []
    for _ in range(100_000):
        result = [result]
    return result
