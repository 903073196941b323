"""Norms that are written out in single operations, recognised whatever the order of these.

Programs write (x - mean) / sqrt(variance + eps) * gamma + beta in many ways. Multiplied out, all of them are the same
sum of three products:

    x * r * gamma - mean * r * gamma + beta,  r = 1 / sqrt(variance + eps)

A :class:`Sum` maps each product, a sorted tuple of :class:`Factor`, to its coefficient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..network import NotExpressible

_MAX_TERMS, _MAX_FACTORS = 12, 8


_Statistics = Literal["mean", "squares", "variance", "sum", "sum of squares", "ones", "count"]


class Factor(NamedTuple):
    """A map of the network, or one with repeated rows; statistics of a map; a variable; 1 / sqrt(of + eps), sqrt(...).

    ``squares`` are those of the differences from the mean; ``ones`` has a map's size, and its sum is the ``count``.
    ``of`` names the map or the variable. ``of_map`` is whether a root's variance is that of a map. ``number`` is a
    root's eps, or how often rows are repeated. ``groups`` is into how many groups of several channels a map, or the one
    of which something is known, has been split; 0 if each channel is by itself.
    """

    kind: Literal["map", "rows", "variable", "rsqrt", "sqrt"] | _Statistics
    of: str
    of_map: bool = False
    number: float = 0.0
    groups: int = 0


Product = tuple[Factor, ...]
Sum = dict[Product, float]


class WrittenNorm(NamedTuple):
    """A norm found in a sum: of which map, its eps, and the variables; no mean and variance if they are the map's.

    ``groups`` is how many groups of channels have statistics together, 0 if each channel has its own.
    """

    of: str
    eps: float
    gamma: str | None
    beta: str | None
    mean: str | None
    variance: str | None
    groups: int = 0


def single(factor: Factor) -> Sum:
    """The sum that is one factor."""
    return {(factor,): 1.0}


def alone(value: Sum) -> Factor | None:
    """The factor that a sum consists of; None if it is more than one."""
    ((product, coefficient),) = value.items() if len(value) == 1 else (((), 0.0),)
    return product[0] if len(product) == 1 and coefficient == 1 else None


def holds_map(value: Sum) -> bool:
    """Whether a map itself is a factor."""
    return any(factor.kind == "map" for product in value for factor in product)


def plus(first: Sum, second: Sum, sign: float = 1.0) -> Sum:
    """first + sign * second."""
    result = dict(first)
    for product, coefficient in second.items():
        result[product] = result.get(product, 0.0) + sign * coefficient
    return _bounded({product: coefficient for product, coefficient in result.items() if coefficient})


def times(first: Sum, second: Sum) -> Sum:
    """first * second."""
    result: Sum = {}
    if len(first) * len(second) > _MAX_TERMS:
        raise NotExpressible("it multiplies what is no norm")
    for a, by_a in first.items():
        for b, by_b in second.items():
            product = _without_ones(tuple(sorted(a + b)))
            result[product] = result.get(product, 0.0) + by_a * by_b
    return _bounded(result)


def _without_ones(product: Product) -> Product:
    """A product without the factors that are ones, if there is a map of their size."""
    maps = {factor.of for factor in product if factor.kind in ("map", "squares")}
    return tuple(factor for factor in product if factor.kind != "ones" or factor.of not in maps)


def root(value: Sum, kind: Literal["rsqrt", "sqrt"]) -> Sum:
    """The root of variance + eps, or 1 / root."""
    eps = value.get((), 0.0)
    variances = [product for product, coefficient in value.items() if product and coefficient == 1]
    if len(value) != 2 or len(variances) != 1 or len(variances[0]) != 1 or not 0 < eps <= 1:
        raise NotExpressible("it is no root of a variance and a small number, as in a norm")
    variance = variances[0][0]
    if variance.kind not in ("variance", "variable"):
        raise NotExpressible("it is no root of a variance and a small number, as in a norm")
    return single(Factor(kind, variance.of, variance.kind == "variance", eps, variance.groups))


def over(first: Sum, second: Sum) -> Sum:
    """first / second, which is a root, or the number of pixels that first is a sum of."""
    divisor, summed = alone(second), alone(first)
    if summed and summed.kind in ("sum", "sum of squares"):
        if divisor == Factor("count", summed.of, groups=summed.groups):
            return single(Factor("mean" if summed.kind == "sum" else "variance", summed.of, groups=summed.groups))
    if divisor is None or divisor.kind != "sqrt":
        raise NotExpressible("it divides by what is no root of a variance")
    return times(first, single(divisor._replace(kind="rsqrt")))


def written_norm(value: Sum) -> WrittenNorm | None:
    """The norm that a sum is; None if it is none."""
    maps = [product for product in value if any(factor.kind == "map" for factor in product)]
    if len(maps) != 1 or value[maps[0]] != 1:
        return None
    by_kind: dict[str, list[Factor]] = {}
    for factor in maps[0]:
        by_kind.setdefault(factor.kind, []).append(factor)
    scales = by_kind.pop("variable", [])
    if {kind: len(factors) for kind, factors in by_kind.items()} != {"map": 1, "rsqrt": 1} or len(scales) > 1:
        return None
    (normed,), (scale,) = by_kind["map"], by_kind["rsqrt"]
    rest = {product: coefficient for product, coefficient in value.items() if product != maps[0]}
    shifts = [product for product, coefficient in rest.items() if coefficient == 1]
    products = [product for product, coefficient in rest.items() if coefficient == -1]
    if len(shifts) > 1 or len(products) != 1 or len(rest) != len(shifts) + 1:
        return None
    left = list(products[0])
    for factor in (scale, *scales):
        if factor not in left:
            return None
        left.remove(factor)
    if scale.of_map:
        known = left == [Factor("mean", normed.of, groups=normed.groups)] and scale.of == normed.of
        known = known and scale.groups == normed.groups
    else:
        known = len(left) == 1 and left[0].kind == "variable"
    if not known or any(len(product) != 1 or product[0].kind != "variable" for product in shifts):
        return None
    gamma, beta = (factors[0].of if factors else None for factors in (scales, shifts[0] if shifts else ()))
    mean, variance = (None, None) if scale.of_map else (left[0].of, scale.of)
    return WrittenNorm(normed.of, scale.number, gamma, beta, mean, variance, normed.groups)


def _bounded(value: Sum) -> Sum:
    if len(value) > _MAX_TERMS or any(len(product) > _MAX_FACTORS for product in value):
        raise NotExpressible("it computes more than a norm does")
    return value
