"""The oracle: an ideal diffusion language model without weights, to tell what a decoder loses by its own rule.

Tokens that are revealed in one step are drawn independently, so a step can lose what ties its positions together,
whatever the model. On a trained model this loss and the model's own errors are one number. The oracle has none of its
own: for a task whose items have finitely many valid answers it gives the exact conditional distributions of a model
that puts its mass on these alone (`conditionals`). One token at a time, any order of positions ends in a valid answer;
what a decoder loses on it, it loses by its rule.

`Oracle` is a network handle like any other: decoders ask it for forwards, the counter counts them. Its answers come
with the requests (`Request.answers`). `OracleOptions` make it another ideal model (answers of unlike probability) or
one that is wrong in a known way (sharpened, flattened, perturbed: an overconfident model).

    dlmbench run --model oracle --task stress-shuffle/6 --method threshold --temperature 1
    dlmbench limits --method threshold --task stress-shuffle/6

Left out: helpers (drafts, guides, heads), packed forwards, embeddings: there is nothing to embed. Importing this
package imports nothing heavy; `dlmbench.oracle.network` does.
"""
