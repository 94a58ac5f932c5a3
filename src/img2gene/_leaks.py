"""Stub until leaks are merged."""

from dataclasses import dataclass


@dataclass
class Finding:
    kind: str
    severity: str
    message: str


def find_leaks(*args, **kwargs) -> list[Finding]:
    return []
