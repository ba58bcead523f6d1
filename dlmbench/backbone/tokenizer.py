"""A tokenizer whose files say all, without transformers, whose import takes longer than a short answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from dlmbench.files import read_json

IDLE = {  # fields of tokenizer_config.json that change nothing at these values, or at any
    "tokenizer_class": ("TokenizersBackend", "PreTrainedTokenizerFast"),
    "clean_up_tokenization_spaces": (False,),
    "backend": (),
    "model_max_length": (),
}
ROLES = ("bos_token", "eos_token", "pad_token", "mask_token", "sep_token", "cls_token", "unk_token")


class AddedToken(NamedTuple):
    """A token that is found in a text before it is split."""

    content: str
    special: bool


class PlainTokenizer:
    """What dlmbench asks of a tokenizer, by the library that reads tokenizer.json. Has no chat template."""

    chat_template = None

    def __init__(self, folder: Path, words: dict[str, str]):
        """`words`: role of a special token -> the token, as ``eos_token`` -> ``<|eos|>``."""
        self.name_or_path = str(folder)
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.bos_token, self.eos_token, self.mask_token = (
            words.get(f"{role}_token") for role in ("bos", "eos", "mask")
        )
        self.eos_token_id, self.mask_token_id = (self._id(word) for word in (self.eos_token, self.mask_token))

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """id -> added token."""
        known = self.backend_tokenizer.get_added_tokens_decoder()
        return {number: AddedToken(token.content, token.special) for number, token in sorted(known.items())}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """token -> id, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._id(token)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: str | list[str], add_special_tokens: bool = True) -> dict[str, list]:
        """``input_ids`` of a text, or of each text of a list."""
        if isinstance(texts, str):
            return {"input_ids": self.encode(texts, add_special_tokens)}
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.backend_tokenizer.token_to_id(token)


def plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """The tokenizer of a checkpoint folder where transformers would add nothing to its tokenizer.json; else None."""
    said, whole = read_json(folder / "tokenizer_config.json"), read_json(folder / "tokenizer.json")
    if not isinstance(said, dict) or not isinstance(whole, dict) or any(folder.glob("*chat_template*")):
        return None
    if set(said) - {*ROLES, *IDLE} or any(said.get(key) not in values for key, values in IDLE.items() if values):
        return None
    words = {role: word for role in ROLES if isinstance(word := said.get(role), str)}
    special = {token["content"] for token in whole.get("added_tokens") or () if token["special"]}
    if set(words) != {role for role in ROLES if said.get(role) is not None} or not set(words.values()) <= special:
        return None
    return None if whole.get("truncation") or whole.get("padding") else PlainTokenizer(folder, words)
