"""Promises of normalization."""

from __future__ import annotations

import torch

from featkit_train.networks.normalization import normalize, renormalize


def test_normalize_is_torchvisions() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalize(pixels, mean=mean, std=std), expected)


def test_renormalize_changes_the_statistics() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    given = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    wanted = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    normalized = normalize(pixels, mean=given[0], std=given[1])
    expected = normalize(pixels, mean=wanted[0], std=wanted[1])
    torch.testing.assert_close(renormalize(normalized, given=given, wanted=wanted), expected)
    assert renormalize(normalized, given=given, wanted=given) is normalized
