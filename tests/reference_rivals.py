"""Slow twins of the rivals, in the style of ``reference``: loops over floats, fed with the terms' own parameters."""

import math

from torch import Tensor

import reference as slow
from limbeck.rivals import CRDTerm, Fusion, ReviewTerm, VIDTerm

Map = list[list[list[float]]]  # channel, row, column


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# Maps


def maps(x: Tensor) -> list[Map]:
    x = x[:, :, None, None] if x.ndim == 2 else x
    table: list[Map] = x.detach().double().tolist()
    return table


def averaged_down(image: Map, height: int, width: int) -> Map:
    """Adaptive average pooling: cell i covers the rows from floor(i H / h) to ceil((i + 1) H / h)."""
    rows, columns = len(image[0]), len(image[0][0])
    found: Map = []
    for channel in image:
        pooled = [[0.0] * width for _ in range(height)]
        for i in range(height):
            for j in range(width):
                top, bottom = i * rows // height, -(-(i + 1) * rows // height)
                left, right = j * columns // width, -(-(j + 1) * columns // width)
                cell = [channel[a][b] for a in range(top, bottom) for b in range(left, right)]
                pooled[i][j] = sum(cell) / len(cell)
        found.append(pooled)
    return found


def nearest(image: Map, height: int, width: int) -> Map:
    rows, columns = len(image[0]), len(image[0][0])
    return [
        [[channel[i * rows // height][j * columns // width] for j in range(width)] for i in range(height)]
        for channel in image
    ]


def convolution(image: Map, weight: Tensor, bias: Tensor | None = None) -> Map:
    """Odd kernels, zero padding that keeps the size."""
    kernels = weight.detach().double().tolist()
    half = len(kernels[0][0]) // 2
    rows, columns = len(image[0]), len(image[0][0])
    found: Map = []
    for o, kernel in enumerate(kernels):
        start = float(bias.detach()[o]) if bias is not None else 0.0
        out = [[start] * columns for _ in range(rows)]
        for i in range(rows):
            for j in range(columns):
                for c, window in enumerate(kernel):
                    for a, line in enumerate(window):
                        for b, factor in enumerate(line):
                            y, x = i + a - half, j + b - half
                            if 0 <= y < rows and 0 <= x < columns:
                                out[i][j] += factor * image[c][y][x]
        found.append(out)
    return found


def batch_norm(images: list[Map], gain: Tensor, offset: Tensor, eps: float) -> list[Map]:
    found: list[Map] = [[[list(line) for line in channel] for channel in image] for image in images]
    gain, offset = gain.detach(), offset.detach()
    for c in range(len(images[0])):
        values = [value for image in images for line in image[c] for value in line]
        mean = sum(values) / len(values)
        var = sum((value - mean) ** 2 for value in values) / len(values)
        for image in found:
            for line in image[c]:
                for j, value in enumerate(line):
                    line[j] = float(gain[c]) * (value - mean) / math.sqrt(var + eps) + float(offset[c])
    return found


def map_error(a: list[Map], b: list[Map]) -> float:
    squares = [
        (x - y) ** 2
        for image_a, image_b in zip(a, b, strict=True)
        for channel_a, channel_b in zip(image_a, image_b, strict=True)
        for line_a, line_b in zip(channel_a, channel_b, strict=True)
        for x, y in zip(line_a, line_b, strict=True)
    ]
    return sum(squares) / len(squares)


def to_common_size(x_s: Tensor, x_t: Tensor) -> tuple[list[Map], list[Map]]:
    height, width = min(x_s.shape[2], x_t.shape[2]), min(x_s.shape[3], x_t.shape[3])
    a, b = ([averaged_down(image, height, width) for image in maps(x)] for x in (x_s, x_t))
    return a, b


# Terms


def rows_of(images: list[Map]) -> slow.Rows:
    return [
        [channel[i][j] for channel in image]
        for image in images
        for i in range(len(image[0]))
        for j in range(len(image[0][0]))
    ]


def vid(term: VIDTerm, x_s: list[Tensor], x_t: list[Tensor]) -> float:
    total = 0.0
    for a, b, regressor, scale in zip(x_s, x_t, term.regressors, term.scales, strict=True):
        if a.ndim == 4:
            small_s, small_t = to_common_size(a, b)
            table_s, table_t = rows_of(small_s), rows_of(small_t)
        else:
            table_s, table_t = slow.rows(a), slow.rows(b)
        for layer in regressor:
            if hasattr(layer, "weight"):
                table_s = slow.linear(table_s, layer)
            else:
                table_s = [[max(value, 0.0) for value in row] for row in table_s]
        values: list[float] = []
        for row_s, row_t in zip(table_s, table_t, strict=True):
            for j, (mu, t) in enumerate(zip(row_s, row_t, strict=True)):
                v = softplus(float(scale.detach()[j])) + term.eps
                values.append(0.5 * ((mu - t) ** 2 / v + math.log(v)))
        total += sum(values) / len(values)
    return total


class CRD:
    """The whole state of the published method: banks, constants, one step."""

    def __init__(self, term: CRDTerm) -> None:
        self.term = term
        self.banks = [slow.rows(term.student_bank), slow.rows(term.teacher_bank)]
        self.constants: list[float | None] = [None, None]

    def step(self, z_s: Tensor, z_t: Tensor, index: list[int], negatives: list[list[int]]) -> float:
        term = self.term
        u = [slow.unit(row, 1e-6) for row in slow.linear(slow.rows(z_s), term.student_embedding)]
        v = [slow.unit(row, 1e-6) for row in slow.linear(slow.rows(z_t), term.teacher_embedding)]
        noise = len(negatives[0]) / term.images
        total = 0.0
        for side, (anchors, bank) in enumerate([(u, self.banks[1]), (v, self.banks[0])]):
            scores: slow.Rows = []
            for row, own, others in zip(anchors, index, negatives, strict=True):
                dots = [sum(x * y for x, y in zip(row, bank[k], strict=True)) for k in [own, *others]]
                scores.append([math.exp(dot / term.temperature) for dot in dots])
            known = self.constants[side]
            if known is None:
                flat = [score for line in scores for score in line]
                known = self.constants[side] = sum(flat) / len(flat) * term.images
            for line in scores:
                p = [score / known for score in line]
                total -= math.log(p[0] / (p[0] + noise)) / len(scores)
                total -= sum(math.log(noise / (q + noise)) for q in p[1:]) / len(scores)
        for bank, rows in zip(self.banks, (u, v), strict=True):
            before = {image: list(bank[image]) for image in index}
            for image in index:
                first = rows[index.index(image)]
                mixed = [
                    term.momentum * old + (1 - term.momentum) * new
                    for old, new in zip(before[image], first, strict=True)
                ]
                bank[image] = slow.unit(mixed, 1e-6)
        return total


def fusion(
    block: Fusion, images: list[Map], deeper: list[Map] | None, size: tuple[int, int]
) -> tuple[list[Map], list[Map]]:
    convolved = [convolution(image, block.reduce[0].weight) for image in images]
    norm = block.reduce[1]
    fused = batch_norm(convolved, norm.weight, norm.bias, norm.eps)
    if deeper is not None:
        for n, image in enumerate(fused):
            rows, columns = len(image[0]), len(image[0][0])
            enlarged = nearest(deeper[n], rows, columns)
            attention = convolution([*image, *enlarged], block.attention.weight, block.attention.bias)
            for c in range(len(image)):
                for i in range(rows):
                    for j in range(columns):
                        a, b = (1 / (1 + math.exp(-attention[k][i][j])) for k in range(2))
                        image[c][i][j] = a * image[c][i][j] + b * enlarged[c][i][j]
    fused = [nearest(image, *size) for image in fused]
    norm = block.expand[1]
    out = batch_norm([convolution(image, block.expand[0].weight) for image in fused], norm.weight, norm.bias, norm.eps)
    return out, fused


def review(term: ReviewTerm, x_s: list[Tensor], x_t: list[Tensor]) -> float:
    """With the mean squared error as loss."""
    total = 0.0
    deeper: list[Map] | None = None
    for block, a, b in reversed(list(zip(term.fusions, x_s, x_t, strict=True))):
        teacher = maps(b)
        out, deeper = fusion(block, maps(a), deeper, (len(teacher[0][0]), len(teacher[0][0][0])))
        total += map_error(out, teacher)
    return total


def hint(weight: Tensor, bias: Tensor | None, x_s: Tensor, x_t: Tensor) -> float:
    """A convolution, both maps at the smaller size, mean squared error."""
    height, width = min(x_s.shape[2], x_t.shape[2]), min(x_s.shape[3], x_t.shape[3])
    student = [averaged_down(convolution(image, weight, bias), height, width) for image in maps(x_s)]
    return map_error(student, [averaged_down(image, height, width) for image in maps(x_t)])
