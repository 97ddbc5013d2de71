"""``vlar1 doctor``: what this machine has and lacks for each feature, and what to type."""
