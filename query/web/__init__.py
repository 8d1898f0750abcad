"""The page over a store: `unitscope serve`. It needs the extra `unitscope[web]`."""
