"""The depth transformer's whole walk through a frame's codebooks in one launch, in Triton.

Owns the order of the parts: the inputs of all steps, then step by step the layers, the head, and the choice of the
token that the next step is told. As many programs as the GPU has multiprocessors stay for all of it and wait for each
other between two parts; meanwhile weights that come later are on their way. Knows no modules: the weights' places come
as numbers. `model.depformer_walk` calls it; `model.lm` has the same in plain PyTorch.

N is the rows of a batch, D the width, R the rows of a column, V the ids of a codebook. A step's line of the table holds
the places of its weights: COLUMNS for each layer, in the order of the constants below, then three more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.depformer_parts import (
    add_projected,
    attend,
    begin,
    pointer,
    project,
    project_gated,
    project_normed,
    weight_at,
)
from model.kernels.grid import arrive, prefetch, sign_of, wait
from model.kernels.sampling import choose

IN_PROJ, OUT_PROJ, LINEAR_IN, LINEAR_OUT, NORM_1, NORM_2 = (tl.constexpr(column) for column in range(6))
COLUMNS = tl.constexpr(6)
INPUT, EMBEDDING, HEAD = (tl.constexpr(column) for column in range(3))
"""After the layers' columns: the input's projection, the table that the step's token is looked up in, the head."""


@triton.jit
def _meet(counter, sign, ahead, size, hints: tl.constexpr):
    """Wait until every program has done its part; meanwhile `size` bytes from `ahead`, a weight of later, set out."""
    arrive(counter)
    if hints:
        prefetch(ahead, size, 256)
    return wait(counter, sign)


@triton.jit
def _layer(
    tables,
    at,
    ahead,
    moving,
    history,
    counter,
    sign,
    count,
    sizes: tl.constexpr,
    form: tl.constexpr,
    tile: tl.constexpr,
    wide_tile: tl.constexpr,
    gate_tile: tl.constexpr,
    heads: tl.constexpr,
    hints: tl.constexpr,
):
    """One layer of one step, whose weights stand from `at` on. Returns the barrier's sign.

    `ahead`: entry and bytes of the weight that comes after it, and the entry of the next norm's gain. The weight that a
    part needs is asked for two parts earlier.
    """
    dim: tl.constexpr = sizes[0]
    width: tl.constexpr = sizes[1]
    eps: tl.constexpr = sizes[2]
    marks: tl.constexpr = sizes[3]
    byte: tl.constexpr = form[0].primitive_bitwidth // 8
    table, scales = tables
    residual, seen, gated = moving
    joined, layer, step, steps, first = history
    narrow: tl.constexpr = seen.dtype.element_ty
    # All places first: after a wait they would have to come from the second-level cache again.
    out_place, in_place = tl.load(table + at + OUT_PROJ), tl.load(table + at + LINEAR_IN)
    back_place, next_place = tl.load(table + at + LINEAR_OUT), tl.load(table + ahead[0])
    in_proj, out_proj = weight_at(table, scales, at + IN_PROJ, form), weight_at(table, scales, at + OUT_PROJ, form)
    linear_in = weight_at(table, scales, at + LINEAR_IN, form)
    linear_out = weight_at(table, scales, at + LINEAR_OUT, form)
    gain, next_gain = pointer(table, at + NORM_2, narrow, form[2]), pointer(table, ahead[2], narrow, form[2])
    target = joined + (layer * steps + step).to(tl.int64) * count * 3 * dim
    project_normed(residual, in_proj, target, count, dim, 3 * dim, eps, form, wide_tile, marks)
    sign = _meet(counter, sign, out_place, dim * dim * byte, hints)
    attend(joined, seen, layer, step, steps, first, count, dim, heads)
    sign = _meet(counter, sign, in_place, 2 * width * dim * byte, hints)
    add_projected(seen, out_proj, residual, gain, count, dim, dim, form, tile, marks)
    sign = _meet(counter, sign, back_place, width * dim * byte, hints)
    project_gated(residual, linear_in, gated, count, dim, width, eps, form, gate_tile, marks)
    sign = _meet(counter, sign, next_place, ahead[1], hints)
    add_projected(gated, linear_out, residual, next_gain, count, width, dim, form, tile, marks)
    return _meet(counter, sign, next_place, 0, hints)


@triton.jit
def told_token(token, chosen, given, told, pitch, row, column, steps, reports):
    """Report, if this program does, that `token` was chosen for one `column` of `row`. Returns what is told of it."""
    tl.store(chosen + row * (steps + 1) + column, token, mask=reports)
    cell = row * pitch + column
    return tl.where(tl.load(given + cell) != 0, tl.load(told + cell), token)


@triton.jit
def chosen_token(logits, chance, row, step, steps, card: tl.constexpr, card_width: tl.constexpr):
    """The token of `row` in `step`, from `logits [N, steps, V]`."""
    temperatures, top_ks, seeds, frames, slots = chance
    place = tl.arange(0, card_width)
    source = logits + (row * steps + step).to(tl.int64) * card + place
    logit = tl.load(source, mask=place < card, other=float("-inf"), cache_modifier=".cg").to(tl.float32)
    slot = tl.load(slots + row)
    heat, top_k, seed = tl.load(temperatures + slot), tl.load(top_ks + slot), tl.load(seeds + slot)
    digits: tl.constexpr = 16 if logits.dtype.element_ty == tl.bfloat16 else 32
    return choose(logit, place, card, step + 1, heat, top_k, seed, tl.load(frames + row), digits)


@triton.jit(do_not_specialize=["count", "steps", "first"])
def walk(
    table,
    scales,
    hidden,
    text,
    given,
    told,
    pitch,
    temperatures,
    top_ks,
    seeds,
    frames,
    slots,
    inputs,
    stream,
    normed,
    squares,
    joined,
    seen,
    gated,
    logits,
    chosen,
    counter,
    count,
    steps,
    first,
    eps: tl.constexpr,
    layers: tl.constexpr,
    main: tl.constexpr,
    dim: tl.constexpr,
    width: tl.constexpr,
    card: tl.constexpr,
    scaled: tl.constexpr,
    aligned: tl.constexpr,
    interpreted: tl.constexpr,
    hints: tl.constexpr,
    marks: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    stages: tl.constexpr,
    slices: tl.constexpr,
    wide_rows: tl.constexpr,
    wide_columns: tl.constexpr,
    gate_columns: tl.constexpr,
    wide_stages: tl.constexpr,
    wide_slices: tl.constexpr,
    depth: tl.constexpr,
    wide_depth: tl.constexpr,
    heads: tl.constexpr,
    together: tl.constexpr,
    places: tl.constexpr,
    head_width: tl.constexpr,
    dim_width: tl.constexpr,
    card_width: tl.constexpr,
):
    """`model.depformer_walk` says what the tensors are, and chooses the sizes of tiles."""
    narrow: tl.constexpr = stream.dtype.element_ty
    kind: tl.constexpr = tl.float8e4nv if scaled else narrow
    factor: tl.constexpr = tl.float32 if interpreted else narrow  # the interpreter multiplies no bfloat16
    form: tl.constexpr = (kind, scaled, aligned, factor)
    tile: tl.constexpr = (rows, columns, depth, stages, slices)
    wide_tile: tl.constexpr = (wide_rows, wide_columns, wide_depth, wide_stages, wide_slices)
    gate_tile: tl.constexpr = (wide_rows, gate_columns, wide_depth, wide_stages, wide_slices)
    sizes: tl.constexpr = (dim, width, eps, marks)
    last: tl.constexpr = COLUMNS * layers
    line: tl.constexpr = last + 3
    byte: tl.constexpr = kind.primitive_bitwidth // 8
    one, programs = tl.program_id(0), tl.num_programs(0)
    residual = (stream, normed, squares)
    first_gain = pointer(table, NORM_1, narrow, aligned)
    sign, place = sign_of(counter), tl.load(table + IN_PROJ)
    project(hidden, table, scales, last + INPUT, inputs, dim, count, main, dim, form, tile, steps, line)
    sign = _meet(counter, sign, place, 3 * dim * dim * byte, hints)
    for row in range(one, count, programs):
        vectors = pointer(table, last + EMBEDDING, narrow, aligned)
        token = told_token(tl.load(text + row), chosen, given, told, pitch, row, 0, steps, True)
        begin(token, vectors, inputs, residual, first_gain, count, row, 0, dim, dim_width, marks)
    sign = _meet(counter, sign, place, 0, hints)
    for step in range(steps):
        for layer in range(layers):
            at = step * line + layer * COLUMNS
            more = layer + 1 < layers
            ahead = tl.where(more, at + COLUMNS + IN_PROJ, step * line + last + HEAD)
            size = tl.where(more, 3 * dim * dim * byte, card * dim * narrow.primitive_bitwidth // 8)
            sign = _layer(
                (table, scales),
                at,
                (ahead, size, tl.where(more, at + COLUMNS, 0) + NORM_1),
                (residual, seen, gated),
                (joined, layer, step, steps, first),
                counter,
                sign,
                count,
                sizes,
                form,
                tile,
                wide_tile,
                gate_tile,
                (heads, together, places, head_width),
                hints,
            )
        head, target = step * line + last + HEAD, logits + step * card
        whole: tl.constexpr = (narrow, False, aligned, factor)
        after = step + 1 < steps
        line_after = tl.where(after, step + 1, 0) * line
        place = tl.load(table + line_after + IN_PROJ)
        project(stream, table, scales, head, target, steps * card, count, dim, card, whole, tile)
        sign = _meet(counter, sign, place, tl.where(after, 3 * dim * dim * byte, 0), hints)
        for row in range(one, count, programs):
            chance = (temperatures, top_ks, seeds, frames, slots)
            token = chosen_token(logits, chance, row, step, steps, card, card_width)
            token = told_token(token, chosen, given, told, pitch, row, step + 1, steps, True)
            if after:
                vectors = pointer(table, line_after + last + EMBEDDING, narrow, aligned)
                begin(token, vectors, inputs, residual, first_gain, count, row, step + 1, dim, dim_width, marks)
        sign = _meet(counter, sign, place, 0, hints)
