"""A run in the Rerun viewer: what the operator's page shows, and the arm, the depth and the plan in 3D.

The SDK works in a process of its own (`edge.rerun_view.process`). In the run's, it would hold up the run's end: where a
viewer accepts the connection and then says nothing, its exit handler waits without a limit.
"""
