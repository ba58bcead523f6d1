"""The loop inside the program's own process: run the program once, then evaluate the calls that the judge asks for.

This process holds nothing worth stealing: no expected value, no test, no token. It gets the program and, call by call,
the arguments, and answers with plain values. A program that takes this loop over (frames, `gc`, patched built-ins, the
pipe itself) gains the right to answer the calls, which it had anyway; the judge in the other process believes only
answers that are right.

The supervisor compiles `wire` and this file into one code object that the fresh interpreter gets through the pipe, so
`wire`'s names are there already in the program's process; the import is for readers and for tests.
"""

import sys

from wire import Closed, decode, encode, receive, send


def serve(read_fd, write_fd):
    """Answer frames until the judge closes the pipe.

    The first frame is the program (str), answered like a call. Every other one is `(target, args, kwargs)`: `target`
    names a global of the program or is the number of an opaque object returned earlier. Answers are `("value",
    result)` or `("raise", class name, message)`.
    """
    opaque = []
    module = type(sys)("program")
    sys.modules["program"] = module  # dataclasses and typing look their module up by name

    def keep(value):
        opaque.append(value)
        return len(opaque) - 1

    def resolve(reference):
        if type(reference) is int:
            return opaque[reference]
        if reference not in module.__dict__:
            raise NameError(f"the program does not define {reference!r}")
        return module.__dict__[reference]

    def answer(frame):
        """The whole work of one frame, decoding and encoding included: all of it may raise in odd ways."""
        if not opaque:
            opaque.append(None)  # number 0 is never used, the program has been loaded
            exec(compile(decode(frame), "<program>", "exec"), module.__dict__)
            return encode(("value", None))
        target, args, kwargs = decode(frame, resolve)
        return encode(("value", target(*args, **kwargs)), keep)

    try:
        while True:
            frame = receive(read_fd)
            try:
                reply = answer(frame)
            except BaseException as error:  # SystemExit too: leaving early is an answer like any other
                reply = encode(("raise", type(error).__name__, describe(error)))
            send(write_fd, reply)
    except Closed:
        pass


def describe(error):
    """The message of an exception, never raising and never long."""
    try:
        return str(error)[:300]
    except BaseException:
        return ""
