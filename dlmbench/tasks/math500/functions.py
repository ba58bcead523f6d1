"""What math500 adds to lm-eval's files."""


def unparsed(doc, text):
    """Whether math_verify finds nothing in `text` that it could compare."""
    from math_verify import parse

    return not parse(text)
