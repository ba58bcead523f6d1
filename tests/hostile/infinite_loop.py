# verdict: timeout
def weigh(word):
    while True:
        pass
