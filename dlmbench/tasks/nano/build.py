"""Re-make the shipped nano sets and the tokenizer: `python -m dlmbench.tasks.nano.build [--out FOLDER]`.

Deterministic: the same code and the same versions of reasoning-gym and tokenizers give the same bytes. Needs the extra
`train`. Without `--out` the package's own files are overwritten; the shipped models only fit the shipped tokenizer.
"""

import argparse
import gzip
import itertools
import json
import random
from itertools import islice
from pathlib import Path

from dlmbench.tasks.base import SEPARATOR
from dlmbench.tasks.nano import code, gsm
from dlmbench.tasks.nano.families import FAMILIES, ProgramFamily
from dlmbench.tasks.nano.mix import draw_split, stream
from dlmbench.tasks.nano.separation import split_of

DATA = Path(__file__).parent / "data"
TOKENIZER = Path(__file__).parents[2] / "assets" / "nano" / "tokenizer"
SEED = 20250

# split -> items of each source, in file order: a prefix of the test file is all of the full tier
GSM_SETS = {
    "dev": {"gsm-full": 120, "gsm-easy": 40, "gsm-symbolic": 40},
    "test": {"gsm-full": 500, "gsm-easy": 200, "gsm-symbolic": 200},
}
CODE_SETS = {"dev": 200, "test": 500}
LONG_SETS = {"dev": 200, "test": 500}
MANY_SETS = {"dev": 200, "test": 2000}

VOCABULARY = 1024
SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|eos|>", "mask_token": "<|mask|>", "sep_token": SEPARATOR}
# Chosen so that nearly every word of nano-gsm and nano-code is one token; the long tail of gsm-symbolic is not.
TOKENIZER_MIX = {"gsm-full": 0.15, "gsm-easy": 0.1, "gsm-symbolic": 0.1, "code": 0.65}
TOKENIZER_EXAMPLES = 30_000
RARE_REPEATS = 1_000
# In this order: the answer mark; one digit; a line break with its indentation; an operator between spaces (code) or
# alone (equations); a word with the space before it; other signs with the space before them; remaining white space.
PIECES = (
    r"####",
    r"\d",
    r"\n *",
    r" [-+*/%<>=!]+ ",
    r"[-+*/%<>=]",
    r" ?[A-Za-z_]+",
    r" ?[^\sA-Za-z_\d\-+*/%<>=]+",
    r"\s+",
)


def make_gsm_set(split: str) -> list[dict]:
    """Return the rows of a nano-gsm set ("dev" or "test"); no key occurs twice."""
    rng = random.Random(f"{SEED} nano-gsm {split}")
    rows: dict[str, dict] = {}
    for source, count in GSM_SETS[split].items():
        wanted = len(rows) + count
        while len(rows) < wanted:
            row = draw_split(rng, source, split)
            rows.setdefault(row["key"], row)
    return [_first(row, "key", "tier", "template", "numbers", "question") for row in rows.values()]


def make_code_set(split: str) -> list[dict]:
    """Return the rows of a nano-code set, shuffled; families take turns until enough programs are chosen."""
    rng = random.Random(f"{SEED} nano-code {split}")
    held_out = []
    for family in FAMILIES:
        programs = [v for v in code.all_programs(family) if split_of(code.program_key(family, v)) == split]
        rng.shuffle(programs)
        held_out.append((family, programs))
    chosen: list[tuple[ProgramFamily, tuple]] = []
    while len(chosen) < CODE_SETS[split]:
        chosen += [(family, programs.pop()) for family, programs in held_out if programs]
    chosen = chosen[: CODE_SETS[split]]
    rng.shuffle(chosen)
    rows = []
    for family, values in chosen:
        row = code.make_item(rng, family, values)
        rows.append(_first({**row, "tests": code.make_tests(row)}, "key", "family", "entry_point", "prompt"))
    return rows


def make_long_set(split: str) -> list[dict]:
    """Return the rows of a nano-code/long set; no key occurs twice."""
    rng = random.Random(f"{SEED} nano-code/long {split}")
    rows: dict[str, dict] = {}
    while len(rows) < LONG_SETS[split]:
        row = draw_split(rng, "code-long", split)
        rows.setdefault(row["key"], row)
    tested = [{**row, "tests": code.make_tests(row)} for row in rows.values()]
    return [_first(row, "key", "family", "entry_point", "prompt") for row in tested]


def find_seeds(split: str) -> list[int]:
    """Return the seeds of nano-gsm/many: those from 0 on whose problem belongs to the split and is no repeat."""
    seeds: dict[str, int] = {}
    for seed in itertools.count():
        key = gsm.generate(random.Random(seed), "full")["key"]
        if split_of(key) == split:
            seeds.setdefault(key, seed)
        if len(seeds) == MANY_SETS[split]:
            return list(seeds.values())
    raise AssertionError


def train_tokenizer():
    """Train the byte-level BPE on generated training text and return it as a transformers tokenizer.

    Digits and the operators of equations are single tokens, so a number is always written in the same way. The special
    tokens come first: pad 0, eos 1, mask 2, sep 3. Encoding adds nothing; decoding gives the same text back.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ["".join(f" {noun}" for noun in gsm.OBJECTS)] * RARE_REPEATS  # "1 apple" is rare in the stream
    for row in islice(stream(TOKENIZER_MIX, SEED), TOKENIZER_EXAMPLES):
        texts += [row["prompt"].removesuffix(SEPARATOR), row["target"]]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)


def write(data: Path, tokenizer: Path) -> None:
    """Write the four sets and the tokenizer into two folders, which are created if needed."""
    data.mkdir(parents=True, exist_ok=True)
    for task, make, sets in (("nano-gsm", make_gsm_set, GSM_SETS), ("nano-code", make_code_set, CODE_SETS)):
        for split in sets:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(split)]
            (data / f"{task}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    for split in LONG_SETS:
        text = "".join(json.dumps(row) + "\n" for row in make_long_set(split))
        (data / f"nano-code-long-{split}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (data / "nano-gsm-many.json").write_text(json.dumps({split: find_seeds(split) for split in MANY_SETS}) + "\n")
    tokenizer.mkdir(parents=True, exist_ok=True)
    train_tokenizer().save_pretrained(str(tokenizer))


def _first(row: dict, *names: str) -> dict:
    """Return a row with some fields first, in the order given."""
    return {**{name: row[name] for name in names}, **row}


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write data/ and tokenizer/ here and leave the package alone")
    out = parser.parse_args().out
    write(out / "data" if out else DATA, out / "tokenizer" if out else TOKENIZER)


if __name__ == "__main__":
    main()
