"""The lake: bronze (every change), silver (current rows), and the commits that change both at once."""
