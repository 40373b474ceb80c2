"""Reads what torch releases say, without installing them: a development tool.

`python -m tools.torch_releases` in the root of the checkout; `--help` says what it can do.
"""
