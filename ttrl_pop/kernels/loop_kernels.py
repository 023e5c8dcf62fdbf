"""Loops over float32 on a CPU, compiled by numba when they are first called.

Each runs over the rows `begin` to `end` of what it is given, one after another and each by itself: what comes of a row
depends neither on the rows beside it nor on how the rows are dealt out to threads. Sums may be taken in another order
than they are written in; infinities and NaN mean what they mean.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, no_type_check

import numba
import numpy as np

_CONTRACTED = {"contract"}
_SUMMED = {"contract", "reassoc"}
_STRETCH = 256
"""Tokens of a vocabulary whose probabilities are summed first by themselves."""
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
_INFINITY = np.float32(np.inf)
# Of exp, as in Cephes' expf. Beyond this range, in which 2 to a whole power is a plain float32, it is 0 or infinite.
_LEAST, _MOST = np.float32(-87.3), np.float32(88.0)
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


def _compiled(flags: set[str]) -> Callable[[Callable[..., Any]], Any]:
    """numba's decorator, which keeps what it compiles for later processes where that can be kept: beside this file, in
    the user's cache, or where `NUMBA_CACHE_DIR` says."""

    def decorate(function: Callable[..., Any]) -> Any:
        if numba.config.DISABLE_JIT:
            return function
        options: dict[str, Any] = {"nogil": True, "fastmath": flags, "error_model": "numpy"}
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:
            # None of these can be written to.
            return numba.njit(**options)(function)
        kept = compiled._cache
        kept.save_overload, kept.load_overload = partial(_try, kept.save_overload), partial(_try, kept.load_overload)
        return compiled

    return decorate


def _try(call: Callable[..., Any], *given: Any) -> Any:
    """A full disk, or a file that a lost machine left half written, is no reason not to compute: it compiles again."""
    with suppress(Exception):
        return call(*given)
    return None


@_compiled(_CONTRACTED)
@no_type_check
def _exp(x):
    inside = x if x > _LEAST else _LEAST
    inside = inside if inside < _MOST else _MOST
    power = np.floor(inside * _LOG2_E + _HALF)
    rest = inside - power * _LN_2_HIGH
    rest = rest - power * _LN_2_LOW
    y = _C0
    y = y * rest + _C1
    y = y * rest + _C2
    y = y * rest + _C3
    y = y * rest + _C4
    y = y * rest + _C5
    y = y * rest * rest + rest + _ONE
    y = y * np.int32((np.int32(power) + 127) << 23).view(np.float32)
    y = _ZERO if x < _LEAST else y
    y = _INFINITY if x > _MOST else y
    return y if x == x else x


@_compiled(_SUMMED)
@no_type_check
def attend(queries_NHD, keys_NKD, values_NKD, kept_keys, kept_values, positions_N, scale, window, out_NHD, begin, end):
    key_heads, width = keys_NKD.shape[1], keys_NKD.shape[2]
    shared = queries_NHD.shape[1] // key_heads
    factor = np.float32(scale)
    scores, totals = np.empty((shared, kept_keys.shape[2]), np.float32), np.empty(shared, np.float32)
    for row in range(begin, end):
        n, head = row // key_heads, row % key_heads
        position = positions_N[n]
        if position < 0 or position >= kept_keys.shape[2]:
            raise IndexError("a token's position lies outside of its slot")
        first = max(position - window + 1, 0)
        count = position - first + 1
        keys, values = kept_keys[n, head, first : position + 1], kept_values[n, head, first : position + 1]
        for d in range(width):
            keys[count - 1, d] = keys_NKD[n, head, d]
            values[count - 1, d] = values_NKD[n, head, d]
        queries = queries_NHD[n, head * shared : (head + 1) * shared]
        out = out_NHD[n, head * shared : (head + 1) * shared]
        for t in range(count):
            for h in range(shared):
                total = _ZERO
                for d in range(width):
                    total += queries[h, d] * keys[t, d]
                scores[h, t] = total * factor
        for h in range(shared):
            largest = scores[h, 0]
            for t in range(count):
                largest = scores[h, t] if scores[h, t] > largest else largest
            total = _ZERO
            for t in range(count):
                weight = _exp(scores[h, t] - largest)
                scores[h, t] = weight
                total += weight
            totals[h] = total
            for d in range(width):
                out[h, d] = _ZERO
        for t in range(count):
            for h in range(shared):
                weight = scores[h, t]
                for d in range(width):
                    out[h, d] += weight * values[t, d]
        for h in range(shared):
            for d in range(width):
                out[h, d] /= totals[h]


@_compiled(_CONTRACTED)
@no_type_check
def _offset_row(y_D, offsets_MD, row):
    if row < 0 or row >= offsets_MD.shape[0]:
        raise IndexError("a row of offsets that is not there")
    for d in range(y_D.shape[0]):
        y_D[d] += offsets_MD[row, d]


@_compiled(_SUMMED)
@no_type_check
def _norm_row(x_D, weight_D, eps, added, y_D):
    width = x_D.shape[0]
    total = _ZERO
    for d in range(width):
        total += x_D[d] * x_D[d]
    inverse = _ONE / np.sqrt(total / np.float32(width) + np.float32(eps))
    for d in range(width):
        y_D[d] = x_D[d] * inverse * (weight_D[d] + np.float32(added))


@_compiled(_CONTRACTED)
@no_type_check
def rms_norm(x_BD, weight_D, eps, added, offsets_MD, row_B, y_BD, begin, end):
    for b in range(begin, end):
        _norm_row(x_BD[b], weight_D, eps, added, y_BD[b])
        if row_B.shape[0]:
            _offset_row(y_BD[b], offsets_MD, row_B[b])


@_compiled(_CONTRACTED)
@no_type_check
def add_rms_norm(x_BD, z_BD, weight_D, eps, added, offsets_MD, row_B, sum_BD, y_BD, begin, end):
    for b in range(begin, end):
        for d in range(x_BD.shape[1]):
            sum_BD[b, d] = x_BD[b, d] + z_BD[b, d]
        _norm_row(sum_BD[b], weight_D, eps, added, y_BD[b])
        if row_B.shape[0]:
            _offset_row(y_BD[b], offsets_MD, row_B[b])


@_compiled(_CONTRACTED)
@no_type_check
def offset_rows(x_ND, offsets_MD, row_N, y_ND, begin, end):
    for n in range(begin, end):
        y_ND[n] = x_ND[n]
        _offset_row(y_ND[n], offsets_MD, row_N[n])


# One that is small: what keeps numba from compiling at all, as a system that forbids it, shows when this is imported.
_PROBE = np.zeros((1, 1), np.float32)
offset_rows(_PROBE, _PROBE, np.zeros(1, np.int64), _PROBE, 0, 1)
IS_COMPILED = not numba.config.DISABLE_JIT
"""Whether there is machine code: a debugger can ask numba for none, and loops would take minutes then."""


@_compiled(_CONTRACTED)
@no_type_check
def open_gates(gates, gates_first, ups, ups_first, y_NI, begin, end):
    width = y_NI.shape[1]
    for n in range(begin, end):
        gates_I = gates[n, gates_first : gates_first + width]
        ups_I, y_I = ups[n, ups_first : ups_first + width], y_NI[n]
        for i in range(width):
            gate = gates_I[i]
            y_I[i] = gate / (_ONE + _exp(-gate)) * ups_I[i]


@_compiled(_SUMMED)
@no_type_check
def _mass(logits_V, divisor, largest):
    total = _ZERO
    for v in range(logits_V.shape[0]):
        total += _exp(logits_V[v] / divisor - largest)
    return total


@_compiled(_SUMMED)
@no_type_check
def draw(logits_BV, uniforms_B, temperature, tokens_B, logprobs_B, begin, end):
    vocabulary = logits_BV.shape[1]
    divisor = np.float32(temperature)
    count = -(-vocabulary // _STRETCH)
    masses = np.empty(count, np.float64)
    for b in range(begin, end):
        largest = -_INFINITY
        for v in range(vocabulary):
            largest = logits_BV[b, v] if logits_BV[b, v] > largest else largest
        largest = largest / divisor
        total, last = 0.0, 0
        for n in range(count):
            masses[n] = _mass(logits_BV[b, n * _STRETCH : (n + 1) * _STRETCH], divisor, largest)
            total += masses[n]
            last = n if masses[n] > 0 else last
        # First the stretch of the vocabulary in which the point lies, then the token: the last one that is possible,
        # should rounding pass over it.
        left, stretch, token = uniforms_B[b] * total, 0, vocabulary - 1
        while stretch < last and left >= masses[stretch]:
            left -= masses[stretch]
            stretch += 1
        for v in range(stretch * _STRETCH, min((stretch + 1) * _STRETCH, vocabulary)):
            mass = _exp(logits_BV[b, v] / divisor - largest)
            if mass > 0:
                token = v
                if left < mass:
                    break
                left -= mass
        tokens_B[b] = token
        logprobs_B[b] = logits_BV[b, token] / divisor - largest - np.float32(np.log(total))


@_compiled(_CONTRACTED)
@no_type_check
def _turn_head(x_D, cos_D, sin_D, y_D):
    half = x_D.shape[0] // 2
    for d in range(half):
        y_D[d] = x_D[d] * cos_D[d] - x_D[d + half] * sin_D[d]
    for d in range(half):
        y_D[d + half] = x_D[d + half] * cos_D[d + half] + x_D[d] * sin_D[d + half]


@_compiled(_CONTRACTED)
@no_type_check
def _turn_heads(x_D, weight_D, eps, added, cos_D, sin_D, normed_D, y_HD):
    width = y_HD.shape[1]
    for h in range(y_HD.shape[0]):
        x = x_D[h * width : (h + 1) * width]
        if weight_D.shape[0]:
            _norm_row(x, weight_D, eps, added, normed_D)
            x = normed_D
        _turn_head(x, cos_D, sin_D, y_HD[h])


@_compiled(_CONTRACTED)
@no_type_check
def turn(
    q, q_first, k, k_first, v, v_first, q_weight, k_weight, eps, added, cos_ND, sin_ND, q_NHD, k_NKD, v_NKD, begin, end
):
    key_heads, width = k_NKD.shape[1], k_NKD.shape[2]
    normed_D = np.empty(width, np.float32)
    for n in range(begin, end):
        _turn_heads(q[n, q_first:], q_weight, eps, added, cos_ND[n], sin_ND[n], normed_D, q_NHD[n])
        _turn_heads(k[n, k_first:], k_weight, eps, added, cos_ND[n], sin_ND[n], normed_D, k_NKD[n])
        for h in range(key_heads):
            for d in range(width):
                v_NKD[n, h, d] = v[n, v_first + h * width + d]
