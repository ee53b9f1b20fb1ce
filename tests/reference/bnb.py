"""``bnb:nf4`` and ``bnb:fp4`` of bitsandbytes: blocks over the flat tensor, x ~ table[code] * absmax."""

import numpy as np

from .base import Format, cut, join, settle_nonfinite, to_float32

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
POSITIVE = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
FP4 = np.concatenate([POSITIVE, 0 - POSITIVE])  # not E2M1, not in order, and code 8 is +0.0

NESTED = 256  # scales that share a scale of the second level
SMALLEST = np.float32(1e-38)


def dynamic_map():
    """The 256 numbers of the 8-bit codes, ascending: 0, 1, and for each decade i the middles of 2^i steps from 0.1 to 1.

    The ends of the steps are those of torch: counted up from 0.1 in the lower half and down from 1 in the upper, with
    one rounding for product and sum together. Sum of two ends, half of it and the power of ten round as float32.
    """
    numbers = [np.float32([0, 1])]
    for decade in range(7):
        steps = 2**decade
        step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(steps))
        end = np.arange(steps + 1)
        # float64 holds product and sum exactly.
        ends = np.where(end < (steps + 1) // 2, np.float64(np.float32(0.1)) + step * end, 1 - step * (steps - end)).astype(np.float32)
        middles = np.float32(10.0 ** (decade - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))
        numbers += [middles, -middles]
    return np.sort(np.concatenate(numbers))


MAP = dynamic_map()


def interval(x, table):
    """The code of the entry whose interval holds x.

    The ends of the intervals are the float32 middles between neighbours, (a + b) / 2; an end belongs to the lower
    one. Of the two zeros of FP4 code 0 is the lower: x from above the middle to 0 gives 0, above 0 gives 8.
    """
    order = np.argsort(table, kind="stable")
    middles = (table[order[:-1]] + table[order[1:]]) / np.float32(2)
    return order[np.searchsorted(middles, x, side="left")].astype(np.uint8)


def nearest_in_map(x):
    """The code of a number of -1 to 1, by way of a table of 65536 steps.

    index = trunc((x + 1) * 32767.5 + 0.5), each operation float32. Entry i of the table is the code of the entry of
    the map that is nearest to -1 + 2i / 65535 (float32: the quotient rounded, then the sum); a tie goes to the lower.
    """
    steps = np.float32(-1) + np.arange(65536, dtype=np.float32) * np.float32(2) / np.float32(65535)
    above = np.clip(np.searchsorted(MAP, steps), 1, 255)
    table = np.where(steps - MAP[above - 1] <= MAP[above] - steps, above - 1, above).astype(np.uint8)
    return table[((x + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)).astype(np.int32)]


def sums_of_columns(x):
    """Sums of the columns of ``x`` (n, lanes), in the order of torch: four levels of partial sums.

    A level hands its sum to the next one after ``2^power`` additions, that one after as many again, and so on; what is
    left over is added to the first level, then the levels one after the other.
    """
    power = max(4, (max(len(x), 2) - 1).bit_length() // 4)
    levels = np.zeros((4,) + x.shape[1:], np.float32)
    whole = len(x) >> power << power
    for i in range(whole):
        levels[0] += x[i]
        for level in range(1, 4):
            if (i + 1) % (1 << level * power):
                break
            levels[level] += levels[level - 1]
            levels[level - 1] = 0
    for row in x[whole:]:
        levels[0] += row
    for level in levels[1:]:
        levels[0] += level
    return levels[0]


def mean(x):
    """The float32 mean in the order of torch on one thread, where vectors have 8 lanes; 0 of nothing.

    Vectors are dealt to four chains, vector i to chain i mod 4, each summed as :func:`sums_of_columns`; those left
    over are added to chain 0, then the chains 1, 2, 3. Starting at 0, the elements beyond whole vectors are added one
    after the other, then the lanes. The sum is divided by the count.
    """
    vectors = x[: x.size // 8 * 8].reshape(-1, 8)
    whole = len(vectors) // 4 * 4
    chains = sums_of_columns(vectors[:whole].reshape(-1, 4, 8))
    for vector in vectors[whole:]:
        chains[0] += vector
    for chain in chains[1:]:
        chains[0] += chain
    total = np.float32(0)
    for value in [*x[vectors.size :], *chains[0]]:
        total += value
    return np.float32(total / np.float32(max(x.size, 1)))


class Bnb(Format):
    """``packed`` u8 (ceil(n/2),), the even element high; ``absmax`` f32 (ceil(n/g),) over the elements in C order.

    Encode, every operation float32:

    1. absmax = largest |x| of the block. A short last block stores at least 1e-38.
    2. v = clamp(x * (1 / max(absmax, 1e-38)), -1, 1); in a short last block v = clamp(x / absmax, -1, 1), a division.
    3. code = :func:`interval` of v; an odd count is filled up with v = 0.

    With ``double_quant`` ``absmax`` is u8 and ``nested_absmax`` f32 (ceil(G/256),) and ``offset`` f32 () follow:

    4. offset = :func:`mean` of absmax; a = absmax - offset.
    5. nested_absmax = largest |a| of each 256, and code = :func:`nearest_in_map` of clamp(a * (1 / nested_absmax), -1, 1);
       all codes of a block whose nested_absmax is 0 are 0.

    Decode: absmax = map[code] * nested_absmax, then + offset (two roundings); value = table[code] * absmax.
    """

    group_size = 64
    parts = ("packed", "absmax", "nested_absmax", "offset")
    table: np.ndarray

    def encode(self, array, *, axis=-1, group_size=None, scale_dtype=None, nonfinite="raise", double_quant=False):
        x, size = to_float32(array).reshape(-1), group_size or self.group_size
        x = join(settle_nonfinite(cut(x, size), nonfinite), x.shape, size)
        whole = x.size // size * size
        blocks, rest = x[:whole].reshape(-1, size), x[whole:]
        absmax = np.abs(blocks).max(-1)
        scaled = [(blocks * (np.float32(1) / np.maximum(absmax, SMALLEST))[:, None]).reshape(-1)]
        if rest.size:
            last = np.maximum(np.abs(rest).max(), SMALLEST)
            absmax = np.append(absmax, last)
            scaled.append(rest / last)
        scaled.append(np.zeros(x.size % 2, np.float32))
        codes = interval(np.clip(np.concatenate(scaled), -1, 1), self.table)
        packed = codes[0::2] << 4 | codes[1::2]
        if not double_quant:
            return {"packed": packed, "absmax": absmax}
        return {"packed": packed, **self.encode_absmax(absmax)}

    def encode_absmax(self, absmax):
        offset = mean(absmax)
        centred = absmax - offset
        blocks = cut(centred, NESTED)
        nested = np.abs(blocks).max(-1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scaled = np.clip(blocks * (np.float32(1) / nested)[:, None], -1, 1)
        # 0 / 0, and 0 times the infinite reciprocal of what is too small, is code 0.
        codes = np.where(np.isnan(scaled), 0, nearest_in_map(np.nan_to_num(scaled)))
        return {"absmax": join(codes.astype(np.uint8), centred.shape, NESTED), "nested_absmax": nested, "offset": np.array(offset)}

    def decode(self, parts, shape, *, axis=-1, group_size=None, double_quant=False):
        absmax, packed = parts["absmax"], parts["packed"]
        if double_quant:
            blocks = cut(MAP[absmax], NESTED) * parts["nested_absmax"][:, None]
            absmax = join(blocks, absmax.shape, NESTED) + parts["offset"]
        codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)
        values = self.table[codes[: np.prod(shape, dtype=int)]]
        return (values * np.repeat(absmax, group_size or self.group_size)[: values.size]).reshape(shape)


class BnbNf4(Bnb):
    """Codes of the 16 numbers of NF4, ascending; code 7 is 0."""

    name = "bnb:nf4"
    table = NF4


class BnbFp4(Bnb):
    """Codes of a sign and one of 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4."""

    name = "bnb:fp4"
    table = FP4
