"""What the method costs: time, memory, and what devices tell one another."""
