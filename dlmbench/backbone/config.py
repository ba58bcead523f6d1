"""What distinguishes one backbone from another: a page of numbers, a few switches, and the rule of its experts.

Sizes are read from the official ``config.json`` of a checkpoint by its layout (`dlmbench.backbone.families`), rules
come from its descriptor (`dlmbench.backbone.descriptor`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """The sparse MLP that takes the place of a dense one, and the rule of its router.

    `count` experts of inner width `width`, of which a token goes through `active`, and through a shared one of width
    `shared_width` (0: there is none). `score` is ``softmax`` or ``sigmoid``; with `bias` every expert has a number that
    is added where experts are chosen and nowhere else. With `groups` the choice falls within the `active_groups` best
    of that many groups of neighbours. The weights of the chosen experts are divided by their sum if `renormalised`, and
    multiplied by `scaling`. The first `dense_layers` layers of the network keep a dense MLP.
    """

    count: int
    active: int
    width: int
    shared_width: int = 0
    dense_layers: int = 0
    score: str = "softmax"
    bias: bool = False
    groups: int = 1
    active_groups: int = 1
    renormalised: bool = True
    scaling: float = 1.0


@dataclass(frozen=True)
class BackboneConfig:
    """Shape and rules of one transformer.

    `attention` says which keys a query may see: ``block_causal`` (own block and earlier ones), ``causal``, or ``full``.
    `shift` is 1 when the head at position i predicts token i + 1 (autoregressive parents, Dream), else 0: the two are
    independent. `block_length` is what the weights were trained with where that is known, `grid` where blocks lie; both
    as `Descriptor` says. The first `rotary_dim` numbers of a head are rotated by position, all of them where it is
    None. `experts`: the sparse MLP of the layers behind the dense ones, whose inner width is `intermediate_size`.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tie_embeddings: bool = False
    attention: str = "block_causal"
    shift: int = 0
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    max_positions: int = 32_768
    rope_scaling: tuple[tuple[str, object], ...] = ()
    block_length: int | None = None
    grid: str = "origin"
    rotary_dim: int | None = None
    experts: Experts | None = None

    @property
    def mask(self) -> int:
        """The mask token, for those that cannot do without one. Raises ValueError where there is none."""
        if self.mask_id is None:
            raise ValueError(f"this {self.family} network has no mask token")
        return self.mask_id

    @property
    def rotated(self) -> int:
        """Leading numbers of a head that rotate with the position."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def sparse_layers(self) -> int:
        """How many layers, the last ones, have experts."""
        return self.num_layers - self.experts.dense_layers if self.experts else 0

    @property
    def layer_parameters(self) -> int:
        """Matrix parameters of one dense layer; norms and biases left out."""
        return self._attention_parameters + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """All parameters, the embedding counted once when it is tied to the head."""
        return self._matrices(active=False) + self._beside_matrices

    @property
    def active_parameters(self) -> int:
        """Those that one token meets: experts that are not chosen for it are left out."""
        return self._matrices(active=True) + self._beside_matrices

    @property
    def _attention_parameters(self) -> int:
        return self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)

    @property
    def _beside_matrices(self) -> int:
        """Embedding, head, norms and biases."""
        heads = 1 if self.tie_embeddings else 2
        norms = (2 * self.num_layers + 1) * self.hidden_size
        norms += 2 * self.num_layers * self.head_dim * self.qk_norm
        biases = self.num_layers * self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        if self.experts and self.experts.bias:
            biases += self.sparse_layers * self.experts.count
        return heads * self.vocab_size * self.hidden_size + norms + biases

    def _matrices(self, active: bool) -> int:
        """Matrix parameters of all layers, or those that one token meets."""
        dense = (self.num_layers - self.sparse_layers) * self.layer_parameters
        return dense + self.sparse_layers * (self._attention_parameters + self._sparse_parameters(active))

    def _sparse_parameters(self, active: bool) -> int:
        """Matrix parameters of one sparse MLP, router included."""
        if (experts := self.experts) is None:
            return 0
        inner = (experts.active if active else experts.count) * experts.width + experts.shared_width
        return self.hidden_size * (3 * inner + experts.count)

    def parameters_read(self, tokens: float) -> float:
        """Parameters that a forward of so many tokens reads, if routing were uniform: an expert is read once, whoever
        chose it. The embedding's few rows are left out unless it is the head too."""
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        if (experts := self.experts) is None:
            return self.parameters - embedding
        unread = experts.count * (1 - experts.active / experts.count) ** tokens
        return self.parameters - embedding - self.sparse_layers * unread * 3 * self.hidden_size * experts.width

    def flops(self, query_tokens: float, attended: float, projected: float | None = None) -> float:
        """Floating point operations of a forward (two per multiply-add); of experts, those that are chosen.

        `query_tokens` pass the layers, `attended` is the number of (query, key) pairs, `projected` the number of
        positions sent through the head (default: all of `query_tokens`).
        """
        projected = query_tokens if projected is None else projected
        matrices = 2 * self._matrices(active=True) * query_tokens
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * attended
        return matrices + attention + 2 * self.vocab_size * self.hidden_size * projected
