"""What can be trained and pruned: a file with the settings of each task."""
