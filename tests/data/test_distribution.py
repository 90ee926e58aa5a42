"""compare_distributions against SciPy and against data whose answer is known."""

import pytest
import torch

from torchnotes.data import compare_distributions, train_dev_test_split

stats = pytest.importorskip("scipy.stats", reason="SciPy is the independent implementation compared with")


def _normal(m, n, seed):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "shift"), [((400, 300), 0.0), ((400, 300), 0.3), ((150, 2000), 0.1)])
def test_kolmogorov_smirnov_agrees_with_scipy(rows, shift):
    a, b = _normal(rows[0], 3, 0), _normal(rows[1], 3, 1) + shift
    report = compare_distributions(a, b)
    for i in range(3):
        exact = stats.ks_2samp(a[:, i].numpy(), b[:, i].numpy())
        assert float(report.statistics[i]) == pytest.approx(exact.statistic, rel=1e-12)
        # an asymptotic p-value against an exact one: a few per cent of it, more far out in the tail
        assert float(report.p_values[i]) == pytest.approx(exact.pvalue, rel=0.15, abs=1e-4)


def test_chi_squared_agrees_with_scipy():
    a = torch.tensor([0] * 50 + [1] * 30 + [7] * 20)
    b = torch.tensor([0] * 30 + [1] * 60 + [7] * 25)
    report = compare_distributions(a, b)
    expected = stats.chi2_contingency([[50, 30, 20], [30, 60, 25]], correction=False).pvalue
    assert report.p_value == pytest.approx(expected, rel=1e-6)  # what gammaincc is good for
    assert not report.same
    assert report.worst_feature is None
    assert "in the classes" in str(report)


def test_false_alarms_are_as_rare_as_asked_for():
    alarms = sum(not compare_distributions(_normal(200, 5, s), _normal(200, 5, 1000 + s)).same for s in range(100))
    assert alarms <= 5  # 1 expected of 100 at 0.01; more than 5 has a chance of 0.05 %


def test_a_random_split_passes_and_a_sorted_one_does_not():
    x = _normal(3000, 4, 0)
    (x_train,), (x_dev,), _ = train_dev_test_split(x, generator=torch.Generator().manual_seed(0))
    assert compare_distributions(x_train, x_dev).same
    by_size = x[x[:, 2].argsort()]
    report = compare_distributions(by_size[:1500], by_size[1500:])
    assert not report.same
    assert report.worst_feature == 2
    assert float(report.statistics[2]) == 1.0


def test_one_class_and_constant_columns_are_the_same():
    assert compare_distributions(torch.zeros(5, dtype=torch.long), torch.zeros(7, dtype=torch.long)).same
    assert compare_distributions(torch.ones(5, 2), torch.ones(9, 2)).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "wording"),
    [
        (lambda: compare_distributions(torch.zeros(5, 2), torch.zeros(5, 3)), "rows of the same shape"),
        (lambda: compare_distributions(torch.zeros(1, 2), torch.zeros(5, 2)), "first must have at least 2 rows"),
        (lambda: compare_distributions(torch.zeros(5, 0), torch.zeros(5, 0)), "first must have at least one column"),
        (lambda: compare_distributions(torch.full((5, 1), torch.nan), torch.zeros(5, 1)), "free of NaN"),
        (
            lambda: compare_distributions(torch.zeros(5, 1), torch.zeros(5, 1), significance=0.0),
            r"significance must lie in \(0, 1",
        ),
    ],
)
def test_errors_say_what_must_hold_and_what_came(call, wording):
    with pytest.raises(ValueError, match=wording):
        call()
