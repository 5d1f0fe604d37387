"""What is left on disk: networks as sparse files, beside other ways to store them."""
