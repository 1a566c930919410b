"""What the machine gives: files and stores, processes, devices, memory, locks."""
