"""What ``vlar1 deploy`` has the board's own Python do: sent as source, nothing is installed for it.

So it imports the standard library alone, and what is sent along.
"""


class Refused(Exception):
    """The board cannot do what was asked; the message is one line."""
