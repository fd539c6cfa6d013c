"""Videos as WebDataset tars with a table beside them: one video's bytes, found by row number."""

from shards.dataset import Dataset
from shards.errors import DamagedError, InputError, above, at_least, one_line

__all__ = ["DamagedError", "Dataset", "InputError", "above", "at_least", "one_line"]
