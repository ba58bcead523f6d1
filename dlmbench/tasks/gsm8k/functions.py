"""GSM8K: the number that an answer states, compared as a number."""

from dlmbench.tasks import numbers


def process_results(doc, results):
    return {"exact_match": float(numbers.same(results[0], numbers.stated(doc["answer"], ("hash",))))}


def _filter(read):
    """lm-eval's custom filter: one list of responses an item."""
    return lambda resps, docs: [read(responses[0]) for responses in resps]


stated_after_hash = _filter(lambda text: numbers.stated(text, ("hash", "boxed", "phrase")))
stated_in_box = _filter(lambda text: numbers.stated(text, ("boxed", "phrase", "hash")))
stated_in_words = _filter(lambda text: numbers.stated(text, ("phrase", "boxed", "hash")))
boxed = _filter(numbers.boxed)
last = _filter(numbers.last)
