"""Makes a target exact: verify forwards whose rows have the bits of plain steps, and proof of it.

What MLX computes alike for one row and for several is found on the model's own weights; the rest
of the products and the attention run row by row. What else a layer does is not changed. Whether
all of it together gives the bits of plain steps is then looked at, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import InputError
from ..kernels import KERNELS, Kernel
from ..kernels.guard import backend_here
from ..kernels.linears import linear_of
from ..kernels.race import why_wrong
from ..kernels.trial import Trial, attempt, try_kernels
from .exact_check import EXPECTED, HINT, check_exact, same_bits
from .mixers import is_linear
from .row_by_row import AtOnce, Form, RowByRow, form_of
from .tables import find_embedding, find_head
from .tap import Target

TryKernels = Callable[[Sequence[Trial]], Mapping[Trial, str]]


def make_exact(
    target: Target,
    most_rows: int,
    kernels: Collection[Kernel] | None = None,
    trial: TryKernels = try_kernels,
) -> None:
    """Let the rows of a target's verify forwards have the bits of plain steps, until it drops them.

    Plain steps and prompts are computed as before. Its requests run one at a time from now on.

    Args:
        target: the target, without kernels.
        most_rows: rows of the widest forward that is checked.
        kernels: exact kernels for the products; None for those of the backend here.
        trial: finds which trials fail, see `kernels.trial.try_kernels`.

    Raises:
        InputError: rows have other bits all the same; the target is as it was.
    """
    settings = target.cache_settings
    if settings.max_kv_size is not None and not settings.ignored_by(target.model):
        found = f"max_kv_size {settings.max_kv_size}, whose full cache is read in another order"
        raise InputError(target.where, found, EXPECTED, HINT)
    with target.turns:
        target.drop_rows()
        with target.untapped():
            linears = _linears(target.model, target.where)
            if kernels is None:
                here = backend_here()
                kernels = [k for k in KERNELS.values() if k.exact and k.backend == here]
            rows = RowByRow(target.model, linears, _at_once(linears, most_rows, kernels, trial))
            check_exact(target.model, target.where, settings, rows, most_rows)
        target.use_rows(rows)


def _linears(model: nn.Module, where: object) -> list[Any]:
    """The modules whose output rows come each from the same input row, by a matrix."""
    modules = [module for _, module in model.named_modules()]
    adapted = [m for m in modules if "lora_a" in m and is_linear(m.get("linear", m))]
    embedding = find_embedding(model, where)
    table = [embedding] if find_head(model, embedding) is None else []
    return [*filter(_gives_rows, [*filter(is_linear, modules), *adapted]), *table]


def _gives_rows(module: Any) -> bool:
    """Whether a module's output is one array; AFM 7's fused layers give several."""
    return isinstance(module(_input(module.get("linear", module), 1)[None]), mx.array)


def _at_once(
    linears: Sequence[Any], most_rows: int, kernels: Collection[Kernel], trial: TryKernels
) -> Mapping[Form, AtOnce]:
    """What computes 2 to `most_rows` rows at once with the bits of single ones, by form."""
    by_form: dict[Form, list[Any]] = {}
    for module in linears:
        if "weight" in module:
            by_form.setdefault(form_of(module), []).append(module)
    found: dict[Form, dict[int, Kernel | None]] = {}
    left: list[tuple[Form, int]] = []
    for form, modules in by_form.items():
        numbers = range(2, most_rows + 1)
        agree = _rows_that_agree(modules, most_rows)
        found[form] = {rows: None for rows in numbers if rows in agree}
        left += [(form, rows) for rows in numbers if rows not in agree and "scales" in modules[0]]
    for (form, rows), kernel in _exact_kernels(by_form, left, kernels, trial).items():
        found[form][rows] = kernel
    return found


def _rows_that_agree(modules: Sequence[Any], most_rows: int) -> set[int]:
    """The numbers of rows whose product by MLX has the bits of single rows.

    Seen on the first and the last module of a form: which kernel MLX takes is the form's matter.
    """
    agree = set(range(2, most_rows + 1))
    for module in {id(m): m for m in (modules[0], modules[-1])}.values():
        call = getattr(module, "as_linear", module)
        x = _input(module, most_rows)[None]
        single = mx.concatenate([call(x[:, i : i + 1]) for i in range(most_rows)], axis=1)
        flags = [same_bits(call(x[:, :rows]), single[:, :rows]) for rows in range(2, most_rows + 1)]
        agree &= {rows for rows, same in enumerate(np.array(mx.stack(flags)).tolist(), 2) if same}
    return agree


def _input(module: Any, rows: int) -> mx.array:
    """Random rows `[rows, inputs]` of several sizes, the same ones every time."""
    quantized = "scales" in module
    words = module.weight.shape[-1]
    inputs = words * 32 // module.bits if quantized else words
    x = mx.random.normal((rows, inputs), key=mx.random.key(rows))
    sizes = mx.power(2.0, mx.arange(rows) % 7 - 3)[:, None]
    return (x * sizes).astype((module.scales if quantized else module.weight).dtype)


def _exact_kernels(
    by_form: Mapping[Form, Sequence[Any]],
    wanted: Sequence[tuple[Form, int]],
    kernels: Collection[Kernel],
    trial: TryKernels,
) -> dict[tuple[Form, int], Kernel]:
    """An exact kernel for each form and number of rows, where one runs and has the bits here."""
    products = {(f, rows): linear_of(by_form[f][0]).product(rows) for f, rows in wanted}
    able = [
        (key, kernel)
        for key, product in products.items()
        for kernel in kernels
        if kernel.why_not(product) is None
    ]
    trials = [(kernel.name, products[key]) for key, kernel in able]
    failed = trial(trials) if trials else {}
    found: dict[tuple[Form, int], Kernel] = {}
    for key, kernel in able:
        form, rows = key
        modules = by_form[form]
        xs = [_input(module, rows) for module in modules]
        stands = key not in found and (kernel.name, products[key]) not in failed
        if stands and attempt(partial(why_wrong, kernel, modules, xs)) is None:
            found[key] = kernel
    return found
