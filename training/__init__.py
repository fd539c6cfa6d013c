"""The training run: its settings, its folder and data, its loop, and what a checkpoint of it holds."""
