"""What runs on a cluster, and everything that imports Ray: the scheduler, actors, drivers and job submission."""
