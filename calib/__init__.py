"""Where the camera is, seen from the arm: how it is measured, how good it is, and the file that keeps it."""
