"""Promises of an ensemble: it says the mean of what its members say, and is as near to an image as
they are on average."""

from __future__ import annotations

import numpy as np
import torch

from featkit_train.labeled.judge import Predictions, ensemble_of

MEMBERS, N, K = 3, 4, 5


def drawn(seed: int, width: int) -> Predictions:
    """One member, of a width of its own."""
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(N, K, generator=generator)).softmax(dim=-1)
    vectors, copies = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=-1)
        for n in (N, 2 * N)
    )
    return Predictions(probs.numpy(), vectors.numpy(), copies.numpy())


def test_an_ensemble_averages_probabilities_and_inner_products() -> None:
    members = [drawn(seed, width=6 + seed) for seed in range(MEMBERS)]
    whole = ensemble_of(members)
    for n in range(N):
        for k in range(K):
            expected = sum(float(member.probs[n, k]) for member in members) / MEMBERS
            np.testing.assert_allclose(whole.probs[n, k], expected, rtol=1e-6)
    assert whole.probs.dtype == whole.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole.vectors, axis=1), 1.0, rtol=1e-6)
    for name in ("vectors", "copy_vectors"):
        ours, theirs = getattr(whole, name), [getattr(member, name) for member in members]
        np.testing.assert_allclose(
            ours @ ours.T, sum(each @ each.T for each in theirs) / MEMBERS, atol=1e-6
        )


def test_two_sure_opponents_are_halves() -> None:
    vectors = np.ones((1, 1), np.float32)
    members = [
        Predictions(np.array([row], np.float32), vectors, vectors)
        for row in ([1.0, 0.0], [0.0, 1.0])
    ]
    assert ensemble_of(members).probs.tolist() == [[0.5, 0.5]]
