"""How a job fits into the memory of a device: `planner` decides, `placement` does, `fitting` joins them for a job."""
