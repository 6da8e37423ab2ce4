"""The filesystem between a kernel adapter and the cluster."""

import everfold  # noqa: F401 - after it, the modules of this folder are found compiled (`native`)
