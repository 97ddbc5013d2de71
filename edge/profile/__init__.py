"""``vlar1 profile``: where the decisions of a bundle spend their time, and how far from the floor that is."""
