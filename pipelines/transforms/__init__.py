"""The two implementations of augmentation, DALI and NumPy, of the same ViewParams."""
