"""What lies in the models folders: found, known by its header alone, named and hashed. Light: no torch."""
