"""Prompts as token ids and as chat markup, the same from every entrance: runs, `generate` and Python."""

from __future__ import annotations

from dlmbench.engine.text import Tokenizer
from dlmbench.errors import RequestError


def prompt_ids(tokenizer: Tokenizer, prompt: str, templated: bool) -> tuple[int, ...]:
    """Token ids of a prompt. Special tokens are added where the tokenizer does so, but not to text that has them.

    An EOS that the tokenizer puts behind the text is taken off again: a prompt is there to be continued.
    """
    begin, end = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "eos_token", None)
    has_them = templated or bool(begin and prompt.startswith(begin))
    ids = tuple(tokenizer.encode(prompt, add_special_tokens=not has_them))
    if end and not has_them and not prompt.endswith(end) and ids[-1:] == (tokenizer.eos_token_id,):
        ids = ids[:-1]
    return ids


def render_chat(
    tokenizer: Tokenizer, messages: list[dict[str, str]], add_generation_prompt: bool = True, **options: object
) -> str:
    """`messages` in the tokenizer's chat markup, ready for the assistant's answer; `options` are the template's own.

    Without a generation prompt the last message is the beginning of that answer. It is appended as text: given to the
    template as a turn, some templates trim it or put an empty thought before it.

    Raises RequestError if the template refuses the conversation.
    """
    begun = ""
    if not add_generation_prompt:
        *messages, last = messages
        begun = last["content"]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, continue_final_message=False, **options
        )
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise RequestError(
            f"The model's chat template refuses a conversation of {roles} ({' '.join(str(error).split())[:120]}); "
            "use --no-chat-template, or --num-fewshot 0 where examples are turns."
        ) from error
    return text + begun
