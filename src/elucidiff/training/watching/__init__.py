"""What looks at a run while it trains: logs, losses by level, sheets of samples, held-out data, trackers.

Nothing in here changes a bit of the model.
"""
