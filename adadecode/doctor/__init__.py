"""What a run would meet on this machine and this cluster, looked at before it is started."""
