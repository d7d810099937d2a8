"""How much of a folder `submit` sends with a job, in MiB."""

MOST_MIB, LARGEST_MIB = 100, 500  # unless told otherwise; Ray takes no package of 512
