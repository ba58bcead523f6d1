# verdict: failed
class Odd(BaseException):
    def __str__(self):
        raise self

    __name__ = property(lambda self: 1 / 0)


def weigh(word):
    raise Odd
