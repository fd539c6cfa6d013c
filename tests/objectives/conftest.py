"""Makes the helpers beside the tests importable, in the processes that the tests start as well."""

import multiprocessing
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
multiprocessing.set_forkserver_preload(["tests.training.preloaded"])  # as tests/training does
