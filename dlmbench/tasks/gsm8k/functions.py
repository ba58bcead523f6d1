"""GSM8K: the number that an answer states, compared as a number."""

from dlmbench.tasks import answers


def process_results(doc, results):
    return {"exact_match": float(answers.same(results[0], answers.stated(doc["answer"], ("hash",))))}


def _filter(read):
    """lm-eval's custom filter: one list of responses an item."""
    return lambda resps, docs: [read(responses[0]) for responses in resps]


stated_after_hash = _filter(lambda text: answers.stated(text, ("hash", "boxed", "phrase")))
stated_in_box = _filter(lambda text: answers.stated(text, ("boxed", "phrase", "hash")))
stated_in_words = _filter(lambda text: answers.stated(text, ("phrase", "boxed", "hash")))
boxed = _filter(answers.boxed)
last = _filter(answers.last)
