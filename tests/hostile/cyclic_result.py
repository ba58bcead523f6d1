# verdict: failed
def weigh(word):
    result = {}
    result["again"] = [result, result]
    return result
