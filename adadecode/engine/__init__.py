"""The decode loop: rounds of drafting, deferring and verifying."""
