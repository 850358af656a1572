"""What numba compiles for `_compiled`: vector loops, and one task made of them.

numba's vectoriser does not keep the insertion in registers, so the inner loops are written with
llvmlite, each as one loop over s on vectors of `LANES` lanes. What numba and llvmlite hand on is
not typed: it would all be Any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from solo_infoaug._compile import compiled

LANES = 8
SIDE = 32  # tracks on each side of a block
CHUNK = 96  # samples s in a strip
THREE_KL, KSG1, KSG2 = 0, 1, 2  # places in `ESTIMATORS`
RENORMALISE = 64  # vectors of mantissas whose product stays finite in float32

# --- vector loops ------------------------------------------------------------------------------


class _Lanes:
    """A vector in memory: `array[offset + LANES * slot:][:LANES]`, as integers."""

    def __init__(self, context, builder, array_type, array, offset):
        self.builder = builder
        self.index_type = offset.type
        self.align = array_type.dtype.bitwidth // 8
        self.type = ir.VectorType(ir.IntType(8 * self.align), LANES)
        data = context.make_array(array_type)(context, builder, value=array).data
        self.pointer = builder.bitcast(builder.gep(data, [offset]), self.type.as_pointer())

    def _at(self, slot):
        if isinstance(slot, int):
            slot = ir.Constant(self.index_type, slot)
        return self.builder.gep(self.pointer, [slot])

    def load(self, slot):
        return self.builder.load(self._at(slot), align=self.align)

    def store(self, value, slot):
        self.builder.store(value, self._at(slot), align=self.align)

    def all(self, value):
        return ir.Constant(self.type, [value] * LANES)


def _lanes(context, builder, sig, args, *places: int) -> Iterator[_Lanes]:
    """The vectors of those arguments that are arrays; the offset of each follows it."""
    return (_Lanes(context, builder, sig.args[i], args[i], args[i + 1]) for i in places)


def _for_each(
    builder: Any, count: Any, carried: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emit `for s in range(count): carried = body(s, carried)` for count >= 1."""
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(count.type)
    index.add_incoming(ir.Constant(count.type, 0), before)
    values = []
    for initial in carried:
        value = builder.phi(initial.type)
        value.add_incoming(initial, before)
        values.append(value)
    updated = body(index, values)
    following = builder.add(index, ir.Constant(count.type, 1))
    index.add_incoming(following, loop)
    for value, new in zip(values, updated, strict=True):
        value.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return updated


def _update(builder: Any, held: _Lanes, slots: int, count: Any, body: Callable[..., Any]) -> None:
    """Carry the first vectors of `held` through `_for_each`, and put them back."""
    start = [held.load(i) for i in range(slots)]
    for i, value in enumerate(_for_each(builder, count, start, body)):
        held.store(value, i)


def _min(builder, a, b):
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _max(builder, a, b):
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@intrinsic
def _spread(typing, x, at_s, at_t, count, strip, at_strip, further):
    """strip[s, lane] = |x[s] - x[t + lane]| for one coordinate.

    For a `further` one, told by a tuple that is not empty, what is there stays where it is larger.
    """

    def code(context, builder, sig, args):
        lanes = _Lanes(context, builder, sig.args[0], args[0], args[2])
        (out,) = _lanes(context, builder, sig, args, 4)
        bits = lanes.type.element.width
        vector = ir.VectorType(ir.DoubleType() if bits == 64 else ir.FloatType(), LANES)
        here = builder.bitcast(lanes.load(0), vector)
        data = context.make_array(sig.args[0])(context, builder, value=args[0]).data
        others = builder.gep(data, [args[1]])

        def body(s, _):
            one = builder.insert_element(
                ir.Constant(vector, ir.Undefined),
                builder.load(builder.gep(others, [s])),
                ir.Constant(ir.IntType(32), 0),
            )
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            other = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)
            distance = builder.bitcast(builder.fsub(other, here), lanes.type)
            distance = builder.and_(distance, lanes.all(2 ** (bits - 1) - 1))
            out.store(_max(builder, out.load(s), distance) if sig.args[6].count else distance, s)
            return []

        _for_each(builder, args[3], [], body)
        return context.get_dummy_value()

    return types.void(x, at_s, at_t, count, strip, at_strip, further), code


@intrinsic
def _select(typing, x, at_x, y, at_y, count, best, at, ks):
    """Insert max(x[s], y[s]) for each s into the k smallest so far, `best` `[k, LANES]`, ascending.

    `ks` is a tuple of k zeros: its length is known to the compiler.
    """

    def code(context, builder, sig, args):
        k = sig.args[7].count
        strip_x, strip_y, kept = _lanes(context, builder, sig, args, 0, 2, 5)

        def body(s, smallest):
            new = _max(builder, strip_x.load(s), strip_y.load(s))
            out = [_min(builder, smallest[0], new)]
            for i in range(1, k):
                out.append(_min(builder, smallest[i], _max(builder, smallest[i - 1], new)))
            return out

        _update(builder, kept, k, args[4], body)
        return context.get_dummy_value()

    return types.void(x, at_x, y, at_y, count, best, at, ks), code


@intrinsic
def _multiply(typing, best, at_best, product, at_product):
    """Multiply `product` by a vector of distances; which lanes are 0, as bits.

    `product` is `[(mantissa, exponent), LANES]`.

    Lanes that are 0 or absent count as 1, so that their logarithm is 0.
    """

    def code(context, builder, sig, args):
        kept, held = _lanes(context, builder, sig, args, 0, 2)
        bits = kept.type.element.width
        fraction = 23 if bits == 32 else 52
        one = (127 if bits == 32 else 1023) << fraction
        infinite = ((1 << (bits - 1 - fraction)) - 1) << fraction
        real = ir.VectorType(ir.FloatType() if bits == 32 else ir.DoubleType(), LANES)
        value = kept.load(0)
        zero = builder.icmp_signed("==", value, kept.all(0))
        absent = builder.icmp_signed(">=", value, kept.all(infinite))
        value = builder.select(builder.or_(zero, absent), kept.all(one), value)
        mantissa = builder.and_(value, kept.all((1 << fraction) - 1))
        mantissa = builder.bitcast(builder.or_(mantissa, kept.all(one)), real)
        mantissa = builder.fmul(builder.bitcast(held.load(0), real), mantissa)
        held.store(builder.bitcast(mantissa, held.type), 0)
        exponent = builder.ashr(value, kept.all(fraction))
        exponent = builder.sub(exponent, kept.all(one >> fraction))
        held.store(builder.add(held.load(1), exponent), 1)
        return builder.zext(builder.bitcast(zero, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(best, at_best, product, at_product), code


@intrinsic
def _reach(typing, x, at_x, y, at_y, count, best, at_best, reach, at):
    """Largest x[s], and largest y[s], among the s with max(x[s], y[s]) <= best; into `reach`."""

    def code(context, builder, sig, args):
        strip_x, strip_y, bound, held = _lanes(context, builder, sig, args, 0, 2, 5, 7)
        limit, zero = bound.load(0), held.all(0)

        def body(s, reached):
            a, b = strip_x.load(s), strip_y.load(s)
            near = builder.icmp_signed("<=", _max(builder, a, b), limit)
            return [
                _max(builder, old, builder.select(near, new, zero))
                for old, new in zip(reached, (a, b), strict=True)
            ]

        _update(builder, held, 2, args[4], body)
        return context.get_dummy_value()

    return types.void(x, at_x, y, at_y, count, best, at_best, reach, at), code


@intrinsic
def _count(typing, x, at_x, y, at_y, count, limits, at_limits, counts, at):
    """Count the s that both have with x[s], y[s], max(x[s], y[s]) within limits 0, 1 and 2."""

    def code(context, builder, sig, args):
        strip_x, strip_y, limit, held = _lanes(context, builder, sig, args, 0, 2, 5, 7)
        within = [limit.load(i) for i in range(3)]
        bits = held.type.element.width
        infinite = held.all(0x7F800000 if bits == 32 else 0x7FF0000000000000)

        def body(s, found):
            a, b = strip_x.load(s), strip_y.load(s)
            joint = _max(builder, a, b)
            present = builder.icmp_signed("<", joint, infinite)
            hits = [
                builder.and_(present, builder.icmp_signed("<=", value, bound))
                for value, bound in zip((a, b, joint), within, strict=True)
            ]
            return [
                builder.sub(old, builder.sext(hit, held.type))
                for old, hit in zip(found, hits, strict=True)
            ]

        _update(builder, held, 3, args[4], body)
        return context.get_dummy_value()

    return types.void(x, at_x, y, at_y, count, limits, at_limits, counts, at), code


# --- one task ----------------------------------------------------------------------------------

SELECT, REACH, COUNT = 0, 1, 2  # passes over the samples


class Block(NamedTuple):
    """Tracks i0:i1 of x with j0:j1 of y, over samples t0:t1; a triangle has j >= i only."""

    i0: int
    i1: int
    j0: int
    j1: int
    t0: int
    t1: int
    triangle: bool


@njit(nogil=True)
def _fill(array, count, value):
    for i in range(count):
        array[i] = value


@njit(nogil=True)
def _pack(x, first, last, rows, part, strips):
    """A strip for each track: L∞ distances from t0... to s0..., a sample to itself at infinity."""
    padded, s0, count, t0, infinity = part
    for track in range(first, last):
        start = track * rows * padded
        at = (track - first) * CHUNK * LANES
        _spread(x, start + s0, start + t0, count, strips, at, ())
        for _ in range(1, rows):
            start += padded
            _spread(x, start + s0, start + t0, count, strips, at, (0,))
        for own in range(max(t0, s0), min(t0 + LANES, s0 + count)):
            strips[at + (own - s0) * LANES + own - t0] = infinity


@njit(nogil=True)
def _sweep(action, x, y, block, shape, t0, ks, work):
    """Pass over all samples s once, for the lanes t0... and every active pair of the block."""
    rows, columns, width = block.i1 - block.i0, block.j1 - block.j0, len(ks) * LANES
    strip, infinity, triangle = CHUNK * LANES, work.infinity, block.triangle
    strips_x = work.strips_x
    strips_y = strips_x if triangle and shape.same else work.strips_y
    best, limits, counts, active = work.best, work.limits, work.counts, work.active
    for s0 in range(0, shape.samples, CHUNK):
        count = min(CHUNK, shape.samples - s0)
        if action == SELECT or shape.samples > CHUNK:
            part = (shape.padded, s0, count, t0, infinity)
            _pack(x, block.i0, block.i1, shape.rows_x, part, strips_x)
            if not (triangle and shape.same):
                _pack(y, block.j0, block.j1, shape.rows_y, part, strips_y)
        for i in range(rows):
            for j in range(i if triangle else 0, columns):
                pair = i * columns + j
                at_x, at_y, last = i * strip, j * strip, (pair + 1) * width - LANES
                three = pair * 3 * LANES
                if action == SELECT:
                    _select(strips_x, at_x, strips_y, at_y, count, best, pair * width, ks)
                elif not active[pair]:
                    continue
                elif action == REACH:
                    _reach(strips_x, at_x, strips_y, at_y, count, best, last, limits, three)
                else:
                    _count(strips_x, at_x, strips_y, at_y, count, limits, three, counts, three)


@njit(nogil=True)
def _set_limits(pairs, width, kind, work):
    """Within which distance COUNT counts: 0 for ties, REACH's for KSG 2, just below ρ for KSG 1."""
    best, limits = work.best, work.limits
    for pair in range(pairs):
        for lane in range(LANES):
            rho = best[(pair + 1) * width - LANES + lane]
            at = pair * 3 * LANES + lane
            if kind == KSG2:
                limits[at + 2 * LANES] = rho
            else:  # the bits of the next smaller number are one less
                inside = max(rho - 1, 0) if kind == KSG1 else 0
                for i in range(3):
                    limits[at + i * LANES] = inside


@njit(nogil=True)
def _add_counts(columns, pairs, width, kind, psi, work, out):
    """What the counted samples add to the sums."""
    best, counts = work.best, work.counts
    for pair in range(pairs):
        if not work.active[pair]:
            continue
        total, ties = 0.0, 0
        for lane in range(LANES):
            rho = best[(pair + 1) * width - LANES + lane]
            if rho >= work.infinity:
                continue
            at = pair * 3 * LANES + lane
            near_x, near_y, near = counts[at], counts[at + LANES], counts[at + 2 * LANES]
            if kind == THREE_KL:
                if rho == 0:
                    ties += 1
                    total += psi[near + 1]
            elif kind == KSG2 and rho > 0:
                total += psi[near] - 1.0 / near - psi[near_x] - psi[near_y]
            else:
                total += psi[near + 1] - psi[near_x + 1] - psi[near_y + 1]
        out[pair // columns, pair % columns, 1] += ties
        out[pair // columns, pair % columns, 2] += total


@njit(nogil=True)
def _add_distances(columns, pairs, width, work):
    """Multiply the distances into each pair's product; whether any of them is 0."""
    best, product, active = work.best, work.product, work.active
    again = False
    for pair in range(pairs):
        active[pair] = _multiply(best, (pair + 1) * width - LANES, product, pair * 2 * LANES) != 0
        again |= active[pair]
    return again


@njit(nogil=True)
def _take_logarithms(block, work, first, column, out):
    """Add the logarithm of each pair's product of distances, and begin the products anew."""
    columns = block.j1 - block.j0
    for i in range(block.i1 - block.i0):
        for j in range(columns):
            at = (first + i * columns + j) * 2 * LANES
            mantissa, exponent = 1.0, 0
            for lane in range(LANES):
                mantissa *= work.mantissa[at + lane]
                exponent += work.product[at + LANES + lane]
                work.mantissa[at + lane] = 1
                work.product[at + LANES + lane] = 0
            out[i, j, column] += math.log(mantissa) + exponent * math.log(2.0)


@njit(nogil=True)
def _task(x, y, block, shape, ks, psi, work, out):
    """Add to `out` `[pairs of the block, 4]` what `neighbour_sums` describes, for samples t0:t1."""
    columns, width, kind = block.j1 - block.j0, len(ks) * LANES, shape.kind
    pairs = (block.i1 - block.i0) * columns
    alone = shape.alone and kind == THREE_KL and len(ks) > 1
    _fill(work.active, pairs, True)
    for pair in range(2 * pairs if alone else pairs):
        for lane in range(pair * 2 * LANES, (pair * 2 + 1) * LANES):
            work.mantissa[lane] = 1
            work.product[lane + LANES] = 0
    vectors = 0
    for t0 in range(block.t0, block.t1, LANES):
        _fill(work.best, pairs * width, work.infinity)
        for action in (SELECT, REACH, COUNT):
            if action == REACH:
                if kind != KSG2:
                    continue
                _fill(work.limits, pairs * 3 * LANES, 0)
            if action == COUNT and alone:
                for pair in range(pairs):
                    _multiply(work.best, pair * width, work.product, (pairs + pair) * 2 * LANES)
            if action == COUNT:
                if kind == THREE_KL and not _add_distances(columns, pairs, width, work):
                    continue
                _set_limits(pairs, width, kind, work)
                _fill(work.counts, pairs * 3 * LANES, 0)
            _sweep(action, x, y, block, shape, t0, ks, work)
            if action == COUNT:
                _add_counts(columns, pairs, width, kind, psi, work, out)
        vectors += 1
        if vectors % RENORMALISE == 0 or t0 + LANES >= block.t1:
            _take_logarithms(block, work, 0, 0, out)
            if alone:
                _take_logarithms(block, work, pairs, 3, out)


@compiled()
def run_block(x, y, block, shape, ks, psi, work, out):
    """Blocks side by side; of a triangle's, the first is on the diagonal."""
    for j0 in range(block.j0, block.j1, shape.side):
        j1 = min(j0 + shape.side, block.j1)
        triangle = block.triangle and j0 == block.j0
        one = Block(block.i0, block.i1, j0, j1, block.t0, block.t1, triangle)
        _task(x, y, one, shape, ks, psi, work, out[:, j0 - block.j0 : j1 - block.j0])


@compiled()
def run_paired(x, y, block, shape, ks, psi, work, out):
    """x[p] with y[p] only, for p in j0:j1; a track of x that comes again has its strips already."""
    tracks = x.reshape(-1, shape.rows_x * shape.padded)
    p = block.j0
    while p < block.j1:
        after = p + 1
        while after < min(p + SIDE, block.j1) and (tracks[p] == tracks[after]).all():
            after += 1
        one = Block(p, p + 1, p, after, block.t0, block.t1, False)
        _task(x, y, one, shape, ks, psi, work, out[:, p - block.j0 : after - block.j0])
        p = after
