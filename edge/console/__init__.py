"""The operator's page: a process of its own that shows a run in a browser, takes orders there, and can always stop it.

It shares the servo loop's memory (`edge.control.ServoWatch`), so that its stop reaches the arm whatever else hangs.
"""
