"""The parts of tools/bench_loader.py: what is timed, the peers it is compared with, and how it is shown."""
