# SPDX-License-Identifier: Apache-2.0
"""What a service counts, as Prometheus reads it (its text format, version 0.0.4)."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metrics:
    """``helps`` explains each metric by its name.  One whose name ends in ``_total`` only grows."""

    helps: Mapping[str, str]
    _values: dict[str, dict[Labels, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count so many more (or, of what is no total, fewer)."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            values = self._values.setdefault(name, {})
            values[key] = values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """What it is now."""
        with self._lock:
            self._values.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def get(self, name: str, **labels: str) -> float:
        """What it is now; 0 of what was never counted."""
        return self._values.get(name, {}).get(tuple(sorted(labels.items())), 0)

    def text(self) -> str:
        """All of them; those that were never counted are 0 where they have no labels."""
        lines = []
        with self._lock:
            for name, meaning in self.helps.items():
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
                for labels, value in sorted(self._values.get(name, {(): 0}).items()):
                    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                    lines.append(f"{name}{'{' + shown + '}' if shown else ''} {value:.17g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
