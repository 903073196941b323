"""Norms that graphs of TensorFlow write out in single operations, in the ways that programs do."""

from __future__ import annotations

import pytest

from pix2pix.checkpoints.network import NotExpressible
from pix2pix.checkpoints.tensorflow.algebra import (
    Factor,
    Sum,
    WrittenNorm,
    over,
    plus,
    root,
    single,
    times,
    written_norm,
)

X, OTHER = single(Factor("map", "x")), single(Factor("map", "other"))
MEAN, VARIANCE = single(Factor("mean", "x")), single(Factor("variance", "x"))
GAMMA, BETA, STORED_MEAN, STORED_VARIANCE = (single(Factor("variable", name)) for name in ("g", "b", "m", "v"))
EPS: Sum = {(): 1e-3}


def minus(first: Sum, second: Sum) -> Sum:
    return plus(first, second, -1.0)


def rsqrt(variance: Sum = VARIANCE) -> Sum:
    return root(plus(variance, EPS), "rsqrt")


def ones(kind: str) -> Sum:
    return single(Factor(kind, "x"))


DEVIATION = root(plus(VARIANCE, EPS), "sqrt")
SCALE = times(rsqrt(), GAMMA)
FORMS = {
    "scaled difference": plus(times(times(GAMMA, minus(X, MEAN)), rsqrt()), BETA),
    "scale and shift": plus(times(X, SCALE), minus(BETA, times(MEAN, SCALE))),
    "shift by the negative mean": plus(times(X, SCALE), plus(times(minus({}, MEAN), SCALE), BETA)),
    "quotient": plus(times(GAMMA, over(minus(X, MEAN), DEVIATION)), BETA),
    "ones": plus(times(times(ones("ones"), X), SCALE), minus(BETA, times(over(ones("sum"), ones("count")), SCALE))),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_norm(form: str) -> None:
    assert written_norm(FORMS[form]) == WrittenNorm("x", 1e-3, "g", "b", None, None)


def test_stored_statistics_and_no_parameters() -> None:
    scale = times(rsqrt(STORED_VARIANCE), GAMMA)
    stored = plus(times(X, scale), minus(BETA, times(STORED_MEAN, scale)))
    assert written_norm(stored) == WrittenNorm("x", 1e-3, "g", "b", "m", "v")
    assert written_norm(times(minus(X, MEAN), rsqrt())) == WrittenNorm("x", 1e-3, None, None, None, None)


@pytest.mark.parametrize(
    "value",
    [
        X,
        times(X, GAMMA),
        plus(times(plus(X, MEAN), SCALE), BETA),
        plus(times(minus(X, STORED_MEAN), SCALE), BETA),
        plus(times(minus(X, single(Factor("mean", "other"))), SCALE), BETA),
        plus(times(minus(X, MEAN), times(single(Factor("rsqrt", "other", True, 1e-3)), GAMMA)), BETA),
        plus(times(minus(X, MEAN), times(SCALE, GAMMA)), BETA),
        plus(plus(times(X, SCALE), minus(BETA, times(MEAN, rsqrt()))), EPS),
        plus(times(minus(X, MEAN), SCALE), times(BETA, GAMMA)),
        minus(times(minus(X, MEAN), SCALE), BETA),
        plus(times(minus(X, MEAN), SCALE), plus(OTHER, BETA)),
    ],
)
def test_what_is_no_norm(value: Sum) -> None:
    assert written_norm(value) is None


def test_roots_and_quotients_of_something_else() -> None:
    for value in (VARIANCE, plus(X, EPS), plus(VARIANCE, {(): -1.0}), plus(times(VARIANCE, GAMMA), EPS), {}):
        with pytest.raises(NotExpressible, match="no root of a variance and a small number"):
            root(value, "rsqrt")
    for divisor in (GAMMA, VARIANCE, {}, ones("count")):
        with pytest.raises(NotExpressible, match="divides by what is no root"):
            over(X, divisor)


def test_endless_products_are_refused() -> None:
    value = plus(X, GAMMA)
    with pytest.raises(NotExpressible):
        for _ in range(9):
            value = times(value, value)


def test_groups_of_channels_are_those_of_one_split() -> None:
    def of(groups: int, kind: str) -> Sum:
        return single(Factor(kind, "x", groups=groups))

    def norm(x: int, mean: int, variance: int) -> Sum:
        return plus(times(times(GAMMA, minus(of(x, "map"), of(mean, "mean"))), rsqrt(of(variance, "variance"))), BETA)

    assert written_norm(norm(2, 2, 2)) == WrittenNorm("x", 1e-3, "g", "b", None, None, 2)
    assert not any(written_norm(norm(*groups)) for groups in ((0, 2, 2), (2, 0, 2), (2, 2, 0), (2, 2, 1)))
    assert over(of(2, "sum"), of(2, "count")) == of(2, "mean")
    with pytest.raises(NotExpressible):
        over(of(2, "sum"), of(0, "count"))
