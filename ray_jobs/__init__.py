"""Everything that imports Ray: actors, the scheduler, job submission and the entry points run under `ray job submit`."""
