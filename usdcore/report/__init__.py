"""What people read: the before/after table, the figures, and the page, all made from a run's `result.json`."""
