"""Where shards run: here, in processes beside this one, on a Ray cluster. The store says what is done, never these.

An engine takes tasks and reports outcomes (`engine.Engine`); `scheduling` decides what runs when, whatever the engine.
"""
