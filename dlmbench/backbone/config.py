"""What distinguishes one backbone from another: a page of numbers and a few switches.

Sizes are read from the official ``config.json`` of a checkpoint by its layout (`dlmbench.backbone.families`), rules
come from its descriptor (`dlmbench.backbone.descriptor`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneConfig:
    """Shape and rules of one transformer.

    `attention` says which keys a query may see: ``block_causal`` (own block and earlier ones), ``causal``, or ``full``.
    `shift` is 1 when the head at position i predicts token i + 1 (autoregressive parents, Dream), else 0: the two are
    independent. `block_length` is what the weights were trained with where that is known, `grid` where blocks lie; both
    as `Descriptor` says.
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

    @property
    def layer_parameters(self) -> int:
        """Matrix parameters of one layer; norms and biases left out."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """All parameters, the embedding counted once when it is tied to the head."""
        heads = 1 if self.tie_embeddings else 2
        norms = (2 * self.num_layers + 1) * self.hidden_size
        norms += 2 * self.num_layers * self.head_dim * self.qk_norm
        biases = self.num_layers * self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        return self.num_layers * self.layer_parameters + heads * self.vocab_size * self.hidden_size + norms + biases

    def flops(self, query_tokens: float, attended: float, projected: float | None = None) -> float:
        """Floating point operations of a forward (two per multiply-add).

        `query_tokens` pass the layers, `attended` is the number of (query, key) pairs, `projected` the number of
        positions sent through the head (default: all of `query_tokens`).
        """
        projected = query_tokens if projected is None else projected
        matrices = 2 * self.num_layers * self.layer_parameters * query_tokens
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * attended
        return matrices + attention + 2 * self.vocab_size * self.hidden_size * projected
