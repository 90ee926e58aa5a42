"""Forwards that write into their own parameters: bounded embeddings are checked at what they leave, others refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.gradcheck._nets import seeded
from tests.gradcheck.test_shapes_of_models import percent, planted, sign
from torchnotes.gradcheck import check_function, check_gradients

METHODS = ("exact", "projected")
WORDS, TARGET = torch.tensor([[1, 1, 2], [0, 3, 3], [1, 6, 6], [2, 2, 2]]), torch.tensor([0, 1, 2, 1])


def model_of(bound, kind):
    """Seven rows of length about 1, of which the words look up five."""
    table = kind(7, 4, max_norm=bound)
    width = 12 if kind is nn.Embedding else 4
    return seeded(nn.Sequential(table, nn.Flatten(), nn.Linear(width, 3)).double())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("bound", [0.5, 1.0])  # all rows are longer, or some
def test_rows_that_are_scaled_down_are_checked_where_they_end(kind, bound, method):
    model = model_of(bound, kind)
    before = model[0].weight.detach().clone()
    report = check_gradients(model, WORDS, TARGET, loss=F.cross_entropy, method=method)
    assert report.verdict == "correct", str(report)
    said = f"0: max_norm={bound} scales rows down in the forward, which its gradient leaves out on purpose; it was"
    assert any(note.startswith(said) for note in report.notes)
    assert model[0].max_norm == bound
    assert torch.equal(model[0].weight, before)
    F.cross_entropy(model(WORDS), TARGET).backward()  # as in training: it scales the rows
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for entry in report.worst(5):
        assert entry.exact == pytest.approx(float(gradients[entry.parameter][entry.index]), rel=1e-9)


def test_a_bound_that_no_row_exceeds_needs_no_note():
    report = check_gradients(model_of(10.0, nn.Embedding), WORDS, TARGET, loss=F.cross_entropy)
    assert report.verdict == "correct"
    assert not [note for note in report.notes if "max_norm" in note]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [percent, sign])
def test_a_fault_behind_a_bound_is_seen(factor, method):
    wrong, where = planted(model_of(0.5, nn.Embedding), "2.weight", factor)
    report = check_gradients(wrong, WORDS, TARGET, loss=F.cross_entropy, method=method)
    assert [n for n, p in report.by_parameter.items() if p.verdict == "wrong"] == [where], str(report)


class Table(nn.Module):
    """An embedding with a bound, called as a function: there is no attribute by which to lift it."""

    def __init__(self, bound):
        super().__init__()
        self.rows, self.bound = nn.Parameter(torch.zeros(7, 4, dtype=torch.float64)), bound

    def forward(self, words):
        return F.embedding(words, self.rows, max_norm=self.bound).flatten(1)


class Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1).double()

    def forward(self, x):
        self.inner.weight.data.clamp_(-0.1, 0.1)  # no version counter tells of this
        return self.inner(x)


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_writes_into_a_parameter_is_refused(method):
    said = (
        r"the forward must not write into what is differentiated, got one that changes rows in place .* before the ch"
    )
    model = seeded(Table(0.5))
    before = model.rows.detach().clone()
    with pytest.raises(ValueError, match=said):
        check_gradients(model, WORDS, loss=lambda o: o.square().mean(), method=method)
    assert torch.equal(model.rows, before)
    with torch.no_grad():
        model(WORDS)  # at its bound now: nothing is written at θ itself, but wherever a row is moved outward
        with torch.enable_grad(), pytest.raises(ValueError, match=said):
            check_gradients(model, WORDS, loss=lambda o: o.square().mean(), method=method)
    assert check_gradients(seeded(Table(10.0)), WORDS, loss=lambda o: o.square().mean()).verdict == "correct"
    with pytest.raises(ValueError, match=r"changes inner.weight in place"):
        check_gradients(seeded(Clipped()), torch.ones(2, 3), loss=lambda o: o.square().mean(), method=method)


def test_a_function_that_writes_into_an_input_is_refused():
    with pytest.raises(
        ValueError, match=r"fn must not write into what is differentiated, got one that changes input\[0"
    ):
        check_function(lambda w: F.embedding(WORDS, w, max_norm=0.5), torch.ones(7, 4))
