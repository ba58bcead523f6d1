"""The second source of nano-gsm: 24 templates of reasoning-gym's gsm_symbolic, with an equation-only target.

reasoning-gym (Apache-2.0) writes GSM8K-like problems. The templates used here are those in which every number is an
integer up to 1000 and every operand stands in the question or is an earlier result. The target is built from the
worked solution in the metadata: per line, the pieces `expression=number` that are true, without words, units, currency
signs and repeats; the last result must be the answer. The questions are left as they are, some are not good English.
Left out: the other 76 templates (implicit constants such as 7 days, decimals, large numbers).

reasoning-gym is needed to make new problems (training, re-making the sets), not to read the shipped ones.
"""

import random
import re
from collections.abc import Callable
from functools import cache

from dlmbench.errors import RequestError
from dlmbench.tasks.nano.separation import make_key

TEMPLATES = (5, 6, 7, 9, 10, 11, 12, 13, 14, 16, 20, 31, 38, 39, 41, 43, 44, 45, 48, 54, 58, 62, 69, 72)
LARGEST = 1000
TIER = "symbolic"

_NOISE = re.compile(r"[$£€¥₹,]")
_UNIT_SLASH = re.compile(r"[-/](?=[A-Za-z])")  # yards/minute, 174-page
_TIMES = re.compile(r"(?<=[\d\s])[x×](?=[\s\d])")
_PIECE = re.compile(r"(?<![\d.])\d+(?:[-+*/]\d+)+=\d+(?![\d.])")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/=]")


def generate(rng: random.Random, template: int | None = None) -> dict:
    """Draw one problem.

    Args:
        rng: source of all choices; the same state gives the same problem.
        template: number of the template in reasoning-gym, or None to draw one of `TEMPLATES`.

    Returns:
        question, target (equations on one line, then `#### N`), answer, tier ("symbolic"), template, numbers (those of
        the question, in order) and key (see `separation`).

    Raises:
        RequestError: if reasoning-gym is not installed.
    """
    fixed = template
    while True:
        template = rng.choice(TEMPLATES) if fixed is None else fixed
        entry = _generator(template)(rng, 1.0)
        equations = compact(entry["metadata"]["answer_cot"])
        answer = entry["answer"]
        if equations and equations[-1].endswith(f"={answer}") and grounded(entry["question"], equations):
            break
    question = " ".join(entry["question"].split())
    numbers = re.findall(r"\d+", question)
    return {
        "question": question,
        "target": " ".join(equations) + f"\n#### {answer}",
        "answer": int(answer),
        "tier": TIER,
        "template": f"symbolic-{template}",
        "numbers": numbers,
        "key": make_key(" ".join([f"symbolic-{template}", *numbers])),
    }


def compact(solution: str) -> list[str]:
    """Return the true equations of a worked solution, in order and without repeats.

    >>> compact("They ate 3 + 8 = 11 slices.\\nThat is 11 - 5 slices. 11 - 5 = 6 slices\\n#### 6")
    ['3+8=11', '11-5=6']
    """
    equations = []
    for line in solution.split("\n"):
        for piece in _PIECE.findall(_bare(line)):
            if _true(piece) and piece not in equations:
                equations.append(piece)
    return equations


def grounded(question: str, equations: list[str]) -> bool:
    """Tell whether every operand stands in the question or is an earlier result, and no number is too large."""
    known = set(re.findall(r"\d+", question))
    for equation in equations:
        left, _, result = equation.partition("=")
        operands = re.findall(r"\d+", left)
        if not known.issuperset(operands) or int(result) > LARGEST or max(map(int, operands)) > LARGEST:
            return False
        known.add(result)
    return True


def check(row: dict, text: str) -> bool:
    """Tell whether a text is a consistent solution: true, grounded equations that end in the right answer."""
    chain, newline, last = text.partition("\n")
    equations = chain.split(" ")
    if not newline or last != f"#### {row['answer']}" or not equations[-1].endswith(f"={row['answer']}"):
        return False
    if not all(_PIECE.fullmatch(equation) and _true(equation) for equation in equations):
        return False
    return grounded(row["question"], equations)


def _bare(line: str) -> str:
    """Keep numbers and operators only; a semicolon stands between two numbers that no operator joins."""
    line = _TIMES.sub("*", _UNIT_SLASH.sub("", _NOISE.sub("", line)))
    bare = ""
    for token in _TOKEN.findall(line):
        bare += ";" + token if bare[-1:].isdigit() and token[0].isdigit() else token
    return bare


def _true(equation: str) -> bool:
    """Evaluate sums of products of integers exactly; a division must come out even."""
    left, _, result = equation.partition("=")
    total = 0
    for sign, term in re.findall(r"([-+]?)(\d+(?:[*/]\d+)*)", left):
        numerator, denominator = 1, 1
        for operator, number in re.findall(r"([*/]?)(\d+)", term):
            if operator == "/":
                denominator *= int(number)
            else:
                numerator *= int(number)
        if denominator == 0 or numerator % denominator:
            return False
        total += (-1 if sign == "-" else 1) * (numerator // denominator)
    return total == int(result)


@cache
def _generator(template: int) -> Callable[[random.Random, float], dict]:
    try:
        from reasoning_gym.arithmetic.gsm_symbolic import generators_00_49, generators_50_99
    except ImportError as error:
        raise RequestError(
            "Making gsm-symbolic problems needs the package reasoning-gym, which is not installed. "
            "Run: pip install 'dlmbench[train]'."
        ) from error
    module = generators_00_49 if template < 50 else generators_50_99
    return getattr(module, f"generate_{template}")
