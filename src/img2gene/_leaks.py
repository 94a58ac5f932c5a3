"""Stub until leaks are merged."""


def find_leaks(*args, **kwargs):
    return []
