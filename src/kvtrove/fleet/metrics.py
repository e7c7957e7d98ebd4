"""/metrics of all models as one text: every sample says whose it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?( .*)")


def merged(texts: Mapping[str, str]) -> str:
    """texts: model -> what its server exposes, Prometheus's text format. Families stay together, as the format asks.

    A label `model` is added in front of those that a sample has.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for model, text in texts.items():
        label = 'model="' + model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        family: tuple[list[str], list[str]] = ([], [])
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, ([], []))
                if line not in family[0]:
                    family[0].append(line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, rest = found.groups()
                family[1].append(f"{name}{{{label}{',' + labels if labels else ''}}}{rest}")
    return "".join(f"{line}\n" for head, samples in families.values() for line in (*head, *samples))
