"""Dynamic networks: models whose path depends on the data, in their authors' spelling.

One module a family, each citing its source; the table is in ``networks``. The control flow is plain Python
on the values of tensors (``if``, ``while``, ``break``, early ``return``, ``.item()``, lists), as in the
repository or the paper named, with its quirks; nothing here is written for a compiler. Weights are random,
and thresholds are chosen so that the inputs named in the table take every path (``calibrate`` finds them).
"""
