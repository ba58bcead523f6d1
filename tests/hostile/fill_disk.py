# verdict: failed, timeout, memory, crashed
def weigh(word):
    block = b"x" * (1 << 20)
    for number in range(10_000):
        try:
            with open(f"file{number}", "wb") as file:
                for _ in range(100):
                    file.write(block)
        except OSError:
            return -1
    return -1
