"""The kNN vote equals one that is written out neighbour by neighbour."""

from __future__ import annotations

import math

import pytest
import torch

from rotnet_fast.protocols.knn import knn_predict


def vote(
    bank: list[list[float]], labels: list[int], query: list[float], classes: int, k: int, temperature: float
) -> int:
    """One query, in plain Python floats."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    nearest = sorted(((cosine(f, query), label) for f, label in zip(bank, labels, strict=True)), reverse=True)
    votes = [0.0] * classes
    for similarity, label in nearest[:k]:
        votes[label] += math.exp(similarity / temperature)
    return votes.index(max(votes))


def test_vote_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 6, generator=generator) for n in (200, 100))
    labels = torch.randint(0, 5, (200,), generator=generator)
    for k, temperature in ((1, 0.07), (20, 0.07), (20, 1.0)):
        expected = [
            vote(bank.tolist(), labels.tolist(), query, 5, k, temperature) for query in queries.tolist()
        ]
        assert knn_predict(bank, labels, queries, 5, k, temperature).tolist() == expected


def test_a_vote_does_not_depend_on_how_many_queries_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 6, generator=generator) for n in (200, 30))
    labels = torch.randint(0, 5, (200,), generator=generator)
    expected = knn_predict(bank, labels, queries, 5)
    for most in (1, 400, 200 * 29):
        monkeypatch.setattr("rotnet_fast.protocols.knn._MOST_SIMILARITIES", most)
        assert torch.equal(knn_predict(bank, labels, queries, 5), expected)


def test_length_of_features_has_no_say() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    assert knn_predict(bank, torch.tensor([0, 1]), torch.tensor([[5.0, 4.0]]), 2, k=1).tolist() == [0]


def test_close_neighbour_outweighs_two_distant_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.5]])
    assert knn_predict(bank, labels, query, 2, k=3).tolist() == [0]
    assert knn_predict(bank, labels, query, 2, k=3, temperature=1e3).tolist() == [1]  # a plain majority


def test_small_temperature_does_not_overflow() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_predict(bank, labels, torch.eye(3), 3, temperature=1e-4).tolist() == [0, 1, 2]


def test_bank_smaller_than_k_votes_as_a_whole() -> None:
    assert knn_predict(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), 2, k=20).tolist() == [0, 1]
