"""The distances heads are trained to shrink, against the textbook's."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from adadecode.training.loss import acceptance_loss_sum, argmax_loss_sum, kl_sum, make_target

N, V = 6, 50


@pytest.fixture
def logits():
    """The final layer's and a head's."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, V, generator=generator), 3 * torch.randn(N, V, generator=generator)


def textbook(final, head):
    return kl_div(head.log_softmax(-1), final.log_softmax(-1), log_target=True, reduction="sum")


def test_the_kl_is_the_textbooks_sum_and_zero_for_the_final_layer_itself(logits):
    final, head = logits
    torch.testing.assert_close(kl_sum(make_target(final, None), head, None), textbook(final, head))
    assert kl_sum(make_target(final, None), final, None).abs() < 1e-4


@pytest.mark.parametrize("top_k", [1, 3, 20, 49])
def test_the_kl_over_the_top_tokens_and_the_rest_is_that_of_the_coarser_distributions(logits, top_k):
    final, head = logits
    ids = final.topk(top_k).indices

    def coarse(z):
        top = z.softmax(-1).gather(-1, ids)
        return torch.cat([top, 1 - top.sum(-1, keepdim=True)], dim=-1)

    p, q = coarse(final.double()), coarse(head.double())
    expected = (p * (p / q).log()).sum().float()
    got = kl_sum(make_target(final, top_k), head, None)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert got <= textbook(final, head) + 1e-3


def test_the_kl_over_all_tokens_as_top_is_the_full_one_with_its_gradient(logits):
    final, head = logits
    grads = []
    for top_k in (None, V - 1, V):
        leaf = head.clone().requires_grad_()
        kl_sum(make_target(final, top_k), leaf, None).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(kl_sum(make_target(final, V), head, None), textbook(final, head))
    torch.testing.assert_close(grads[2], grads[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3)


def test_a_target_of_the_top_tokens_keeps_nothing_as_wide_as_the_vocabulary(logits):
    target = make_target(logits[0], 4)
    assert target.log_probs.shape == (N, 4)
    assert torch.equal(target.token_ids, logits[0].argmax(-1))


def test_a_certain_final_layer_gives_a_finite_kl_and_gradient(logits):
    certain = torch.full((1, V), -1e9)
    certain[0, 3] = 0.0
    for top_k in (None, 5):
        leaf = logits[1][:1].clone().requires_grad_()
        kl = kl_sum(make_target(certain, top_k), leaf, None)
        kl.backward()
        assert kl.item() == pytest.approx(-leaf.log_softmax(-1)[0, 3].item(), rel=1e-3)
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_the_loss_of_a_shortlist_is_the_cross_entropy_weighted_by_the_final_probability_less_a_constant(logits):
    final, head = logits
    ids = torch.tensor([3, 9, 10, 41])

    def cross_entropy(z):
        return -(final.softmax(-1)[:, ids] * z.log_softmax(-1)).sum()

    first, second = head[:, ids], head[:, ids].flip(0)
    target = make_target(final, None)
    difference = kl_sum(target, first, ids) - kl_sum(target, second, ids)
    torch.testing.assert_close(difference, cross_entropy(first) - cross_entropy(second), rtol=1e-4, atol=1e-4)
    assert kl_sum(target, final[:, ids], ids).abs() < 1e-4, "zero when the head is right about what it can say"


def test_the_argmax_loss_is_the_cross_entropy_with_the_final_layers_choice(logits):
    final, head = logits
    expected = cross_entropy(head, final.argmax(-1), reduction="sum")
    for top_k in (None, 3):
        torch.testing.assert_close(argmax_loss_sum(make_target(final, top_k), head, None), expected)


def test_a_choice_that_a_shortlist_lacks_teaches_nothing(logits):
    final, head = logits
    choices = final.argmax(-1)
    listed = torch.arange(V)[torch.arange(V) != choices[0]]
    places = torch.searchsorted(listed, choices)
    rows = choices != choices[0]
    expected = cross_entropy(head[rows][:, listed], places[rows], reduction="sum")
    torch.testing.assert_close(argmax_loss_sum(make_target(final, None), head[:, listed], listed), expected)


def test_the_acceptance_loss_is_of_what_speculative_sampling_accepts(logits):
    final, head = logits
    p, q = final.softmax(-1), head.softmax(-1)
    expected = -(1.0 - 0.5 * (p - q).abs().sum(-1)).log().sum()  # 1 - TV
    torch.testing.assert_close(acceptance_loss_sum(make_target(final, None), head, None), expected)
    assert acceptance_loss_sum(make_target(final, None), final, None).abs() < 1e-4


def test_the_acceptance_loss_over_some_tokens_counts_those_alone(logits):
    final, head = logits
    p, q = final.softmax(-1), head.softmax(-1)
    ids = final.topk(7).indices
    expected = -torch.minimum(p.gather(-1, ids), q.gather(-1, ids)).sum(-1).log().sum()
    torch.testing.assert_close(acceptance_loss_sum(make_target(final, 7), head, None), expected)
    listed = torch.arange(0, V, 2)
    over_listed = head[:, listed].softmax(-1)
    expected = -torch.minimum(p[:, listed], over_listed).sum(-1).log().sum()
    torch.testing.assert_close(acceptance_loss_sum(make_target(final, None), head[:, listed], listed), expected)
