"""The engine as an lm-eval model.

All requests go to the engine at once, which fills its slots from the queue, and each `Generation` is kept, so that
counts and times per item survive lm-eval's interface, which wants text only.

    lm_eval.simple_evaluate(model=EngineLM(engine), tasks=[task.lm_task])      # lm-eval drives
    task.evaluate(engine, task.items(), on_item=print)                          # dlmbench drives, item by item

lm-eval's ``temperature``, ``do_sample`` and the like are not read: how tokens are chosen is what dlmbench compares, and
the engine's settings decide it. Left out: log-likelihoods, which a block-diffusion decoder does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_eval.api.model import LM

from dlmbench.engine import Request
from dlmbench.engine.prompts import prompt_ids, render_chat
from dlmbench.errors import RequestError
from dlmbench.tasks.evaluate import item_seed
from dlmbench.tasks.harness import Instance
from dlmbench.tasks.task import MAX_TOKENS, most_tokens

if TYPE_CHECKING:
    from dlmbench.engine import Engine, Generation


class EngineLM(LM):
    """An engine behind lm-eval's model interface; ``generations`` keeps what the engine returned, by request key."""

    def __init__(self, engine: Engine, *, max_tokens: int = MAX_TOKENS, chat_template: bool = False, seed: int = 0):
        """Wrap `engine`.

        Args:
            engine: anything with ``tokenizer`` and ``generate(requests, on_finish)``.
            max_tokens: budget of requests that name none (``max_gen_toks``).
            chat_template: prompts come with chat markup, special tokens included, so none are added.
            seed: every request draws from a generator of its own, seeded by this and its key.
        """
        super().__init__()
        self.engine = engine
        self.max_tokens = max_tokens
        self.templated = chat_template
        self.seed = seed
        self.generations: dict[str, Generation] = {}

    # lm-eval's interface

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text a request, cut before its first stop string."""
        wanted = []
        repeats: dict[tuple[str | None, int | None], int] = {}
        for instance in requests:
            prompt, settings = instance.args[:2]
            place = instance.task_name, instance.doc_id
            repeats[place] = repeats.get(place, -1) + 1
            until = settings.get("until") or ()
            stop = (until,) if isinstance(until, str) else until
            key = "/".join(map(str, (*place, repeats[place])))
            ids = prompt_ids(self.engine.tokenizer, prompt, self.templated)
            tokens = most_tokens(settings, self.max_tokens)
            wanted.append(Request(key, ids, tokens, tuple(stop), item_seed(self.seed, key)))
        return [generation.text for generation in self.engine.generate(wanted, self._keep)]

    def _keep(self, generation: Generation) -> None:
        self.generations[generation.key] = generation

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`chat_history` in the tokenizer's markup; from here on prompts count as templated."""
        self.templated = True
        return render_chat(self.engine.tokenizer, chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.engine.tokenizer, "name_or_path", "")).replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise _no_likelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise _no_likelihood(requests)


def _no_likelihood(requests: Sequence[Instance]) -> RequestError:
    name = requests[0].task_name if requests else "this task"
    return RequestError(
        f"Task {name} asks for log-likelihoods, which dlmbench's decoders do not give; take a generate_until task."
    )
