"""What the method costs: time, memory, and communication between devices."""
