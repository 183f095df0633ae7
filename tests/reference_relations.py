"""Slow twins of the losses of relations and of maps, in plain loops over Python floats; see ``reference.py``."""

import math

from torch import Tensor

from reference import Rows, rows, unit


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def huber(d: float) -> float:
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


# Relations


def similarity_preserving(z_s: Tensor, z_t: Tensor) -> float:
    """As the paper has it: all products first, then each row by its length."""
    grams: list[Rows] = []
    for z in (rows(z_s), rows(z_t)):
        grams.append([unit([dot(a, b) for b in z], 1e-12) for a in z])
    total = 0.0
    for row_s, row_t in zip(*grams, strict=True):
        total += sum((s - t) ** 2 for s, t in zip(row_s, row_t, strict=True))
    return total / len(z_s) ** 2


def relative_distances(z: Rows) -> Rows:
    distances = [[math.dist(a, b) for b in z] for a in z]
    pairs = [distances[i][j] for i in range(len(z)) for j in range(len(z)) if i != j]
    mean = sum(pairs) / len(pairs)
    return [[d / mean if mean > 1e-6 else 0.0 for d in row] for row in distances]


def relational_distance(z_s: Tensor, z_t: Tensor) -> float:
    d_s, d_t = relative_distances(rows(z_s)), relative_distances(rows(z_t))
    n = len(z_s)
    return sum(huber(d_s[i][j] - d_t[i][j]) for i in range(n) for j in range(n)) / n**2


def cosine_at(z: Rows, i: int, j: int, k: int) -> float:
    return dot(unit(minus(z[i], z[j]), 1e-6), unit(minus(z[k], z[j]), 1e-6))


def relational_angle(z_s: Tensor, z_t: Tensor) -> float:
    a, b = rows(z_s), rows(z_t)
    n = len(z_s)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                total += huber(cosine_at(a, i, j, k) - cosine_at(b, i, j, k))
    return total / n**3


def relational(z_s: Tensor, z_t: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> float:
    return distance_weight * relational_distance(z_s, z_t) + angle_weight * relational_angle(z_s, z_t)


def cosines(z: Rows) -> Rows:
    units = [unit(row, 1e-6) for row in z]
    return [[dot(a, b) for b in units] for a in units]


def neighbors(z: Rows, eps: float) -> Rows:
    kernel = [[(1 + c) / 2 + eps for c in row] for row in cosines(z)]
    return [[k / sum(row) for k in row] for row in kernel]


def probabilistic_transfer(z_s: Tensor, z_t: Tensor, *, eps: float = 1e-7) -> float:
    p_s, p_t = neighbors(rows(z_s), eps), neighbors(rows(z_t), eps)
    total = 0.0
    for row_s, row_t in zip(p_s, p_t, strict=True):
        total += sum(t * math.log(t / s) for s, t in zip(row_s, row_t, strict=True))
    return total / len(z_s) ** 2


def kernel(c: float, gamma: float, order: int) -> float:
    return math.exp(-2 * gamma) * sum((2 * gamma) ** p / math.factorial(p) * c**p for p in range(order + 1))


def correlation_congruence(z_s: Tensor, z_t: Tensor, *, gamma: float = 0.4, order: int = 2) -> float:
    total = 0.0
    for row_s, row_t in zip(cosines(rows(z_s)), cosines(rows(z_t)), strict=True):
        total += sum(
            (kernel(s, gamma, order) - kernel(t, gamma, order)) ** 2 for s, t in zip(row_s, row_t, strict=True)
        )
    return total / len(z_s) ** 2


def decorrelation(z_s: Tensor, z_t: Tensor, *, standardized: bool = True) -> float:
    n, d = z_s.shape
    channels = [list(column) for column in zip(*rows(z_s), strict=True)]
    centered = [[value - sum(channel) / n for value in channel] for channel in channels]
    total = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                covariance = dot(centered[i], centered[j]) / n
                variances = dot(centered[i], centered[i]) / n * dot(centered[j], centered[j]) / n
                total += covariance**2 / (variances if standardized else 1)
    return total / (d * (d - 1))


# Maps, x[n][c][y][x]

Map = list[list[float]]


def averaged(plane: Map, h: int, w: int) -> Map:
    """Means over regions that cover the plane, as even as whole positions allow; they overlap if they must."""
    tall, wide = len(plane), len(plane[0])
    out: Map = []
    for y in range(h):
        row: list[float] = []
        for x in range(w):
            ys = range(y * tall // h, -(-(y + 1) * tall // h))
            xs = range(x * wide // w, -(-(x + 1) * wide // w))
            row.append(sum(plane[a][b] for a in ys for b in xs) / (len(ys) * len(xs)))
        out.append(row)
    return out


def planes(x_s: Tensor, x_t: Tensor) -> tuple[list[list[Map]], list[list[Map]]]:
    """Both maps as nested lists, of the smaller size."""
    h, w = min(x_s.shape[2], x_t.shape[2]), min(x_s.shape[3], x_t.shape[3])
    out: list[list[list[Map]]] = []
    for x in (x_s, x_t):
        images: list[list[Map]] = x.detach().double().tolist()
        out.append([[averaged(plane, h, w) for plane in image] for image in images])
    return out[0], out[1]


def flat(plane: Map) -> list[float]:
    return [value for row in plane for value in row]


def attention_transfer(x_s: Tensor, x_t: Tensor, *, power: float = 2.0) -> float:
    values: list[float] = []
    for image_s, image_t in zip(*planes(x_s, x_t), strict=True):
        maps: Rows = []
        for image in (image_s, image_t):
            channels = [flat(plane) for plane in image]
            maps.append(unit([sum(abs(v) ** power for v in place) for place in zip(*channels, strict=True)], 1e-12))
        values += [(s - t) ** 2 for s, t in zip(*maps, strict=True)]
    return sum(values) / len(values)


def neuron_selectivity(x_s: Tensor, x_t: Tensor) -> float:
    """The three means of the kernel."""
    values: list[float] = []
    for image_s, image_t in zip(*planes(x_s, x_t), strict=True):
        f_s, f_t = ([unit(flat(plane), 1e-6) for plane in image] for image in (image_s, image_t))
        means: list[float] = []
        for f, g in ((f_s, f_s), (f_t, f_t), (f_s, f_t)):
            means.append(sum(dot(a, b) ** 2 for a in f for b in g) / (len(f) * len(g)))
        values.append(means[0] + means[1] - 2 * means[2])
    return sum(values) / len(values)


def hierarchical_context(x_s: Tensor, x_t: Tensor, *, levels: tuple[int, ...] = (4, 2, 1)) -> float:
    images_s, images_t = planes(x_s, x_t)
    h, w = len(images_s[0][0]), len(images_s[0][0][0])
    total, weights = 0.0, 0.0
    weight = 1.0
    for size in [(h, w), *[(level, level) for level in levels if level < h and level < w]]:
        squares: list[float] = []
        for image_s, image_t in zip(images_s, images_t, strict=True):
            for plane_s, plane_t in zip(image_s, image_t, strict=True):
                a, b = flat(averaged(plane_s, *size)), flat(averaged(plane_t, *size))
                squares += [(s - t) ** 2 for s, t in zip(a, b, strict=True)]
        total += weight * sum(squares) / len(squares)
        weights += weight
        weight /= 2
    return total / weights


def token_map(x: Tensor, prefix: int) -> list[list[Map]]:
    side = math.isqrt(x.shape[1] - prefix)
    out: list[list[Map]] = []
    for tokens in x.tolist():
        patches = tokens[prefix:]
        out.append(
            [[[patches[y * side + x][c] for x in range(side)] for y in range(side)] for c in range(len(patches[0]))]
        )
    return out
