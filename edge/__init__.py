"""On the robot: camera frame and instruction to joint setpoints. No torch, no transformers in here."""
