"""What operators and applications use beside a storage: each module for one job, imported on its own."""
