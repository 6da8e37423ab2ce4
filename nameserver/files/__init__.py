"""Files for those without a mount: by path and by id, over the same tree, ledger and datanodes.

Knows no HTTP. Whoever may not know of something gets NOT_FOUND. A change is one transaction that
is applied whole or not at all; bytes are on the datanodes before a commit names them.
"""
