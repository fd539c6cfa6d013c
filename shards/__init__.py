"""Videos as WebDataset tars with a table beside them: one video's bytes, found by row number."""

from shards.errors import DamagedError, InputError, at_least, one_line
from shards.store import Dataset

__all__ = ["DamagedError", "Dataset", "InputError", "at_least", "one_line"]
