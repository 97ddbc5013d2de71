"""What to train and to test on: rendered scenes, converted annotations, reasoning written by a teacher."""
