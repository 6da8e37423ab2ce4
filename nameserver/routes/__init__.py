"""The HTTP face: routes decode, call, encode; what they call knows no Flask."""
