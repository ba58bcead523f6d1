"""What an answer says after its thinking."""

THOUGHT_ENDS = "</think>"


def after_thought(text: str) -> str:
    """`text` behind its last closing think tag; all of it where there is none."""
    return text.rpartition(THOUGHT_ENDS)[2]
