"""One video: read, measured, encoded."""
