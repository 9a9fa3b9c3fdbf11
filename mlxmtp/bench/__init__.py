"""Measuring: texts, runs, statistics and reports."""

from typing import Literal

Format = Literal["md", "json", "jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("md", "json", "jsonl", "csv")  # here, because the command's help must cost no imports
