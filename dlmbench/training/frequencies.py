"""Counts tokens for `--method pcsampler`:

    python -m dlmbench.training.frequencies MODEL TABLE.json [TEXT.txt ...]

Every line of the texts is one text. Without texts these are 20,000 examples of the nano models' training stream, with
the end token behind each: so the shipped table was made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dlmbench.decoders.frequencies import count
from dlmbench.engine import tokenizer_of
from dlmbench.tasks.nano.mix import stream

NANO_MIX = {"gsm-full": 0.55, "gsm-easy": 0.13, "gsm-symbolic": 0.07, "code": 0.25}
EXAMPLES, SEED = 20_000, 0


def token_rows(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    """Token ids of every line of the files `texts`, or of the nano stream."""
    if not texts:
        for example in islice(stream(NANO_MIX, SEED), EXAMPLES):
            ids = tokenizer(example["prompt"] + example["target"], add_special_tokens=False)["input_ids"]
            yield [*ids, tokenizer.eos_token_id]
    for name in texts:
        for line in Path(name).read_text().splitlines():
            yield tokenizer(line, add_special_tokens=False)["input_ids"]


def main(model: str, table: str, *texts: str) -> None:
    record = count(token_rows(tokenizer_of(model), list(texts)))
    Path(table).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
