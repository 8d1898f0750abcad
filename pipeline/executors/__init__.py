"""Run shards in this process, in worker processes on this machine, or on a Ray cluster.

An engine takes tasks and reports outcomes (`engine.Engine`). `scheduling` decides what runs when, for any engine.
Whether a shard is done is read from the store alone.
"""
