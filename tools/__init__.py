"""The `everfold` command: one file a verb."""
