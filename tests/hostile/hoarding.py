# verdict: memory, crashed, timeout
def weigh(word):
    pieces = []
    while True:
        pieces.append(bytearray(1 << 20))
