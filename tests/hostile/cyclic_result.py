# verdict: failed, timeout
def weigh(word):
    result = {}
    result["again"] = [result, result]
    return result
