"""``vlar1 deploy``: a bundle and a robot file onto a board over ssh, built, examined and measured there."""
