"""A user's module of helpers, which tests of the cache's key change under the model."""

SCALE = 2.0


def scale(x):
    return x * SCALE


def inner(x):
    return scale(x) + 1


class Shift:
    amount = 1.0

    def __call__(self, x):
        return x + self.amount
