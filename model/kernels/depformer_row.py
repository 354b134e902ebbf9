"""The same walk for one row alone, in Triton: shorter on the way from one product to the next.

Owns the order of its parts. With one row nearly all the time of `model.kernels.depformer` passes between products, so
here is one barrier a step and no more. A number goes to the others together with the tag of its part, and who needs it
waits for the number itself (`model.kernels.grid`). Each program keeps the whole residual stream, norms it, attends and
chooses the token for itself, to the same bits, rather than wait for another program. And it has its weights of a part
in registers before it begins to wait for what they are multiplied with.

A number is overwritten a layer later, when everybody has read it: whoever reads it gives something afterwards, in the
same layer or as the next begins, that all which overwrites it depends on. Hence every program must have columns of the
first product, and none may read what it has no columns for, but for the residual stream's parts. Keys and values that
later steps read, and logits, are stored without tags: the step's barrier lies between.

D is the width, V the ids of a codebook. What a layer is made for goes together as its plan; layouts and forms are those
of `model.kernels.depformer_bands`. `mail` is where all write a layer's numbers, and read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.depformer import (
    COLUMNS,
    EMBEDDING,
    HEAD,
    IN_PROJ,
    INPUT,
    LINEAR_IN,
    LINEAR_OUT,
    NORM_1,
    NORM_2,
    OUT_PROJ,
    chosen_token,
    told_token,
)
from model.kernels.depformer_bands import (
    BAND,
    bands_of,
    by_warp,
    channels_of,
    collect,
    collect_heads,
    give,
    load_band,
    times,
)
from model.kernels.depformer_parts import numbers_at, pointer, weight_at
from model.kernels.grid import meet, sign_of

PARTS = tl.constexpr(4)
"""Of a layer, each named by the column of its weight: its numbers have that column's tag."""
SIZES, FORM, LAYOUTS, TURNS, BOXES, HEADS = (tl.constexpr(entry) for entry in range(6))
"""Of a plan: D, the MLP's width and the norm's addend; a weight's form; for each part the layout of the vector that it
multiplies, how many bands a program has, and where in the mail its numbers lie; of the heads their number and the
powers of two that hold them, the steps, and a head's width."""


@triton.jit
def _norm(x, gain, sizes: tl.constexpr, narrow: tl.constexpr):
    return (x * (gain * tl.rsqrt(sizes[2] + tl.sum(x * x, axis=0) / sizes[0]))).to(narrow).to(tl.float32)


@triton.jit
def _seen(joined, mail, tag, time, dim: tl.constexpr, shape: tl.constexpr, narrow: tl.constexpr):
    """What the query sees of the frame's steps from `step + first` to its own: `[heads x a head's width]`.

    `joined [layers, steps, 3 D]` has the keys and values of steps before, which come while this one's are waited for.
    Steps lie so in `[groups, heads, 4, a head's width]` that the sums over them stay in a warp.
    """
    layer, step, steps, first = time
    heads: tl.constexpr = shape[0]
    head_dim: tl.constexpr = dim // heads
    abreast: tl.constexpr = 4 if shape[2] > 4 else shape[2]
    past = tl.arange(0, shape[2] // abreast)[:, None] * abreast + tl.arange(0, abreast)[None, :]
    head, component = tl.arange(0, shape[1]), tl.arange(0, shape[3])
    lane = head[:, None] * head_dim + component[None, :]
    there = (head[:, None] < heads) & (component[None, :] < head_dim)
    before, own = (past < step) & (past >= step + first), (past == step)[:, None, :]
    lines = (layer * steps + past) * 3 * dim
    source, mask = joined + lines[:, None, :, None] + lane[None, :, None, :], before[:, None, :, None]
    mask &= there[None, :, None, :]
    keys = tl.load(source + dim, mask=mask, other=0.0, cache_modifier=".cg")
    values = tl.load(source + 2 * dim, mask=mask, other=0.0, cache_modifier=".cg")
    query, key, value = collect_heads(mail, tag, lane, there, dim)
    score = tl.sum(query[None, :, None, :] * keys.to(tl.float32), axis=3)
    score = tl.where(own, tl.sum(query * key, axis=1)[None, :, None], score) * head_dim**-0.5
    score = tl.where(before[:, None, :] | own, score, float("-inf"))
    peak = tl.max(tl.max(score, axis=2), axis=0)  # of numbers that are none it is -inf
    weight = tl.exp(score - tl.where(peak == float("-inf"), 0.0, peak)[None, :, None])
    weight = weight / tl.sum(tl.sum(weight, axis=2), axis=0)[None, :, None]
    found = tl.sum(tl.sum(weight[:, :, :, None] * values.to(tl.float32), axis=0), axis=1)
    found += tl.sum(tl.sum(tl.where(own, weight, 0.0), axis=2), axis=0)[:, None] * value
    return tl.reshape(found.to(narrow).to(tl.float32), (shape[1] * shape[3],))


@triton.jit
def _places(table, at):
    """A layer's places: where its weights and its norms' gains lie, in the order of the table's columns."""
    weights = (tl.load(table + at + IN_PROJ), tl.load(table + at + OUT_PROJ))
    weights += (tl.load(table + at + LINEAR_IN), tl.load(table + at + LINEAR_OUT))
    weights += (tl.load(table + at + NORM_1), tl.load(table + at + NORM_2))
    return weights


@triton.jit
def _held(lines, part: tl.constexpr, channels: tl.constexpr, halves: tl.constexpr, plan: tl.constexpr):
    """This program's bands of a part's weight. `lines`: this layer's places, and where its scales stand."""
    form: tl.constexpr = plan[FORM]
    weight = (numbers_at(lines[0][part], form[0], form[2]), pointer(lines[1], part, tl.float32, False))
    return bands_of(weight, channels, halves, form, plan[LAYOUTS][part], plan[TURNS][part])


@triton.jit
def _gain(place, dim: tl.constexpr, dim_width: tl.constexpr, form: tl.constexpr):
    number = tl.arange(0, dim_width)
    return tl.load(numbers_at(place, form[3], form[2]) + number, mask=number < dim, other=0.0).to(tl.float32)


@triton.jit
def _give(mail, part: tl.constexpr, channel, value, tag, channels: tl.constexpr, plan: tl.constexpr):
    """What a part made of a band, to the others."""
    give(mail + plan[BOXES][part], channel, value, tag + part, channels)


@triton.jit
def _added(x, mail, part: tl.constexpr, tag, plan: tl.constexpr):
    """The residual stream `[D]` and what a part adds to it, as soon as that is there."""
    branch = collect(mail + plan[BOXES][part], tag + part, plan[SIZES][0], x.shape[0])
    return (x + branch).to(plan[FORM][3]).to(tl.float32)


@triton.jit
def _ask_heads(x, lines, mail, joined, tag, time, plan: tl.constexpr):
    """The norm of `x` times the input's projection: query, key and value, to the others and to later steps.

    Returns `x [D]`, to which the MLP of the layer before is added first.
    """
    dim: tl.constexpr = plan[SIZES][0]
    form: tl.constexpr = plan[FORM]
    layer, step, steps, _ = time
    bands = _held(lines, IN_PROJ, 3 * dim, 1, plan)
    gain = _gain(lines[0][NORM_1], dim, x.shape[0], form)
    if layer > 0:
        x = _added(x, mail, LINEAR_OUT, tag - PARTS, plan)
    normed = _norm(x, gain, plan[SIZES], form[3])
    target = joined + (layer * steps + step) * 3 * dim
    for turn in tl.static_range(plan[TURNS][IN_PROJ]):
        channel = channels_of(turn)
        value = times(normed, bands[turn], form)
        where, writes = by_warp(target, channel, 3 * dim)
        tl.store(where, value.to(form[3])[:, None], mask=writes)
        _give(mail, IN_PROJ, channel, value, tag, 3 * dim, plan)
    return x


@triton.jit
def _hear_heads(lines, mail, joined, tag, time, plan: tl.constexpr):
    """What the heads see times the output's projection, to the others."""
    dim: tl.constexpr = plan[SIZES][0]
    bands = _held(lines, OUT_PROJ, dim, 1, plan)
    heads = mail + plan[BOXES][IN_PROJ]
    seen = _seen(joined, heads, tag + IN_PROJ, time, dim, plan[HEADS], plan[FORM][3])
    for turn in tl.static_range(plan[TURNS][OUT_PROJ]):
        _give(mail, OUT_PROJ, channels_of(turn), times(seen, bands[turn], plan[FORM]), tag, dim, plan)


@triton.jit
def _open_gates(x, lines, mail, tag, plan: tl.constexpr):
    """The norm of `x` into the MLP, to the others: the SiLU of the first half times the second.

    Returns `x [D]`, to which what the heads saw is added first.
    """
    width: tl.constexpr = plan[SIZES][1]
    form: tl.constexpr = plan[FORM]
    bands = _held(lines, LINEAR_IN, width, 2, plan)
    gain = _gain(lines[0][NORM_2], plan[SIZES][0], x.shape[0], form)
    x = _added(x, mail, OUT_PROJ, tag, plan)
    normed = _norm(x, gain, plan[SIZES], form[3])
    for turn in tl.static_range(plan[TURNS][LINEAR_IN]):
        opening, inner = times(normed, bands[2 * turn], form), times(normed, bands[2 * turn + 1], form)
        opened = (opening / (1.0 + tl.exp(-opening))).to(form[3]).to(tl.float32)
        _give(mail, LINEAR_IN, channels_of(turn), (opened * inner).to(form[3]), tag, width, plan)
    return x


@triton.jit
def _close_gates(lines, mail, tag, plan: tl.constexpr):
    """What has passed the gates times the MLP's last weight, to the others."""
    dim: tl.constexpr = plan[SIZES][0]
    bands = _held(lines, LINEAR_OUT, dim, 1, plan)
    gates = mail + plan[BOXES][LINEAR_IN]
    gated = collect(gates, tag + LINEAR_IN, plan[SIZES][1], plan[LAYOUTS][LINEAR_OUT][3])
    for turn in tl.static_range(plan[TURNS][LINEAR_OUT]):
        _give(mail, LINEAR_OUT, channels_of(turn), times(gated, bands[turn], plan[FORM]), tag, dim, plan)


@triton.jit
def _layer(x, lines, mail, joined, tag, time, has_columns, plan: tl.constexpr):
    """The parts of a layer in order, two of them only where the program `has_columns` of the width.

    Returns `x [D]`, to which all is added but what the MLP gives.
    """
    x = _ask_heads(x, lines, mail, joined, tag, time, plan)
    if has_columns:
        _hear_heads(lines, mail, joined, tag, time, plan)
    x = _open_gates(x, lines, mail, tag, plan)
    if has_columns:
        _close_gates(lines, mail, tag, plan)
    return x


@triton.jit
def _head(x, place, logits, step, mail, tag, card: tl.constexpr, turns: tl.constexpr, plan: tl.constexpr):
    """What the last layer makes of `x [D]`, times the head at `place`, to the step's of `logits [steps, V]`."""
    narrow: tl.constexpr = plan[FORM][3]
    whole: tl.constexpr = (narrow, False, plan[FORM][2], narrow)
    weight = (numbers_at(place, narrow, whole[2]), None)
    bands = bands_of(weight, card, 1, whole, plan[LAYOUTS][IN_PROJ], turns)
    x = _added(x, mail, LINEAR_OUT, tag, plan)
    for turn in tl.static_range(turns):
        channel = channels_of(turn)
        value = times(x, bands[turn], whole).to(narrow)
        tl.store(logits + step * card + channel, value, mask=channel < card)


@triton.jit
def _inputs(hidden, tables, entry, line, target, steps, form: tl.constexpr, shape: tl.constexpr, dim: tl.constexpr):
    """`hidden [K]` times the input's projection of each step, to `target [steps, D]`."""
    place = tl.arange(0, shape[3])
    x = tl.load(hidden + place, mask=place < shape[0], other=0.0).to(tl.float32)
    bands = tl.cdiv(dim, BAND)
    for task in range(tl.program_id(0), steps * bands, tl.num_programs(0)):
        step, channel = task // bands, task % bands * BAND + tl.arange(0, BAND)
        weight = weight_at(tables[0], tables[1], entry + step * line, form)
        band = load_band(weight, channel, channel < dim, form, shape)
        product = times(x, band, form)
        tl.store(target + step * dim + channel, product.to(form[3]), mask=channel < dim)


@triton.jit
def _begun(token, vectors, inputs, dim: tl.constexpr, dim_width: tl.constexpr, narrow: tl.constexpr):
    """What a step starts with, `[D]`: its part of the inputs, plus the vector of `token`, of which -1 has none."""
    place = tl.arange(0, dim_width)
    x = tl.load(inputs + place, mask=place < dim, other=0.0, cache_modifier=".cg").to(tl.float32)
    there = (place < dim) & (token != -1)
    looked_up = tl.load(vectors + tl.maximum(token, 0) * dim + place, mask=there, other=0.0)
    return (x + looked_up.to(tl.float32)).to(narrow).to(tl.float32)


@triton.jit(do_not_specialize=["steps", "first"])
def walk_row(
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
    joined,
    logits,
    chosen,
    counter,
    epoch,
    mail,
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
    heads: tl.constexpr,
    places: tl.constexpr,
    head_width: tl.constexpr,
    heads_width: tl.constexpr,
    main_width: tl.constexpr,
    dim_width: tl.constexpr,
    inner_width: tl.constexpr,
    card_width: tl.constexpr,
    in_turns: tl.constexpr,
    out_turns: tl.constexpr,
    gate_turns: tl.constexpr,
    head_turns: tl.constexpr,
):
    """`model.depformer_walk` says what the tensors are. A launch's tags follow the `epoch`, which it moves on."""
    narrow: tl.constexpr = inputs.dtype.element_ty
    form: tl.constexpr = (tl.float8e4nv if scaled else narrow, scaled, aligned, narrow)
    everything: tl.constexpr = (main, main_width, main_width, main_width)
    plain: tl.constexpr = (dim, dim_width, dim_width, dim_width)
    seen: tl.constexpr = (dim, dim // heads, head_width, heads_width * head_width)
    inner: tl.constexpr = (width, inner_width, inner_width, inner_width)
    layouts: tl.constexpr = (plain, seen, plain, inner)
    turns: tl.constexpr = (in_turns, out_turns, gate_turns, out_turns)
    boxes: tl.constexpr = (0, 3 * dim, 4 * dim, 4 * dim + width)
    shape: tl.constexpr = (heads, heads_width, places, head_width)
    plan: tl.constexpr = ((dim, width, eps), form, layouts, turns, boxes, shape)
    last: tl.constexpr = COLUMNS * layers
    line: tl.constexpr = last + 3
    tables, chance = (table, scales), (temperatures, top_ks, seeds, frames, slots)
    reports, has_columns = tl.program_id(0) == 0, tl.program_id(0) * BAND < dim
    sign, tag = sign_of(counter), tl.load(epoch, volatile=True) + 1
    _inputs(hidden, tables, last + INPUT, line, inputs, steps, form, everything, dim)
    sign = meet(counter, sign)
    if reports:
        tl.store(epoch, tag - 1 + PARTS * layers * steps)  # everybody has read it
    token = told_token(tl.load(text), chosen, given, told, pitch, 0, 0, steps, reports)
    own = _places(table, 0)
    for step in range(steps):
        at, after = step * line, tl.where(step + 1 < steps, step + 1, 0) * line
        head = tl.load(table + at + last + HEAD)
        vectors = pointer(table, at + last + EMBEDDING, narrow, aligned)
        x = _begun(token, vectors, inputs + step * dim, dim, dim_width, narrow)
        for layer in range(layers):
            # A place that is loaded a layer ahead is there when it is used.
            ahead = _places(table, tl.where(layer + 1 < layers, at + (layer + 1) * COLUMNS, after))
            lines, time = (own, scales + at + layer * COLUMNS), (layer, step, steps, first)
            x = _layer(x, lines, mail, joined, tag, time, has_columns, plan)
            own = ahead
            tag += PARTS
        _head(x, head, logits, step, mail, tag - PARTS, card, head_turns, plan)
        sign = meet(counter, sign)
        token = chosen_token(logits, chance, 0, step, steps, card, card_width)
        token = told_token(token, chosen, given, told, pitch, 0, step + 1, steps, reports)
