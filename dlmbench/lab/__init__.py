"""The selector laboratory: recorded states of a run, shown to other methods (`dlmbench selectors`)."""
